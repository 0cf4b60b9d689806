/** Where the data come from: TensorBoard's server, or the report page itself. */

import { decodeFrame } from "./frame.js";

/** A refusal by the server, in its own words. */
export class SourceError extends Error {}

/** Asks the plugin's routes; relative addresses work under any path prefix. */
export class ServerSource {
  isLive = true;

  /** @returns {Promise<import("./types.js").RunList>} */
  async runs() {
    return (await ask("./runs", {})).json();
  }

  /** @returns {Promise<import("./types.js").Frame>} */
  async flow(run, optimizer, stat) {
    return decodeFrame(await (await ask("./flow", { run, optimizer, stat })).arrayBuffer());
  }

  /** @returns {Promise<import("./types.js").EventList>} */
  async events(run, optimizer) {
    return (await ask("./events", { run, optimizer })).json();
  }

  /** The total norm of every step, and what a policy would have done; "" for none. */
  async curve(run, optimizer, clip) {
    return (await ask("./whatif", { run, optimizer, clip })).json();
  }
}

/** Reads what a report carries in itself. */
export class ReportSource {
  isLive = false;

  /** @param {HTMLScriptElement} element The element that holds the report's data as JSON. */
  constructor(element) {
    this.content = JSON.parse(element.textContent);
  }

  async runs() {
    return this.content;
  }

  async flow(run, optimizer, stat) {
    const packed = this.content.flows[`${run}\n${optimizer}\n${stat}`];
    if (!packed) throw new SourceError(`The report has no “${stat}” of run “${run}”.`);
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return decodeFrame(await new Response(stream).arrayBuffer());
  }

  async events(run, optimizer) {
    return this.content.events[`${run}\n${optimizer}`];
  }

  /** The total norm of every step; a page without a server runs no policy. */
  async curve(run, optimizer) {
    return this.content.curves[`${run}\n${optimizer}`] || null;
  }
}

async function ask(route, query) {
  const address = `${route}?${new URLSearchParams(query)}`;
  let response;
  try {
    response = await fetch(address);
  } catch {
    throw new SourceError("TensorBoard does not answer. Is it still running?");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new SourceError(answer.error || `TensorBoard answered ${response.status} to ${address}.`);
  }
  return response;
}
