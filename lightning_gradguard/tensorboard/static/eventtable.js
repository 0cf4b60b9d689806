/** The list of what happened; a click pins its step. */

import { el } from "./dom.js";
import { formatStep } from "./format.js";
import { SIGNS } from "./lanes.js";

const SHOWN = 200;

/**
 * @param {Object} view
 * @param {number|null} pinned
 * @param {function(number, string): void} pin
 */
export function makeEventTable(view, pinned, pin) {
  const events = view.marks.slice(-SHOWN).reverse();
  const total = Object.values(view.events.counts).reduce((sum, count) => sum + count, 0);
  const panel = el("section", { class: "panel", id: "events", "aria-label": "Events" }, el("h2", { text: "Events" }));
  if (!events.length) {
    panel.append(el("p", { class: "quiet", text: "Nothing happened: no spike, no NaN, no infinity." }));
    return panel;
  }
  const body = el("tbody", {}, ...events.map((event) => rowOf(event, pinned, pin)));
  const head = el("tr", {}, ...["step", "event", "what happened", "layers"].map((text) => el("th", { scope: "col", text })));
  panel.append(el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), body)));
  if (total > events.length) {
    panel.append(el("p", { class: "quiet", text: `The first and the last ${events.length} of ${formatStep(total)} events are listed.` }));
  }
  return panel;
}

function rowOf(event, pinned, pin) {
  const { sign, name, colour } = SIGNS[event.kind];
  const more = event.num_layers - event.layers.length;
  const layers = event.layers.join(", ") + (more > 0 ? ` and ${more} more` : "");
  const go = () => pin(event.step, event.layers[0] || "");
  const button = el("button", { class: "step", text: formatStep(event.step), title: "Pin this step" });
  return el(
    "tr",
    { "data-step": event.step, "data-kind": event.kind, class: event.step === pinned ? "pinned" : null, onclick: go },
    el("td", { class: "number" }, button),
    el("td", { class: `kind ${colour}` }, el("span", { class: "sign", "aria-hidden": "true", text: sign }), name),
    el("td", { text: event.text }),
    el("td", { class: "layers", text: layers, title: layers }),
  );
}
