/** The entry that TensorBoard calls. */

import { App } from "./app.js";
import { el } from "./dom.js";
import { ReportSource, ServerSource } from "./source.js";

/** Draws the tab into the document; in a report the data are in the page, and so is the style. */
export async function render() {
  const report = document.getElementById("gradguard-report");
  if (!report) document.head.append(el("link", { rel: "stylesheet", href: "./static/style.css" }));
  const app = new App(document.body, report ? new ReportSource(report) : new ServerSource());
  const clips = document.getElementById("clips"); // a report tells below the picture which clip each run asks for
  if (clips) document.querySelector("main").append(clips);
  await app.start();
}
