/** The state in the address of the page, so that a view can be sent to a colleague. */

const PREFIX = "p.gradguard.";

/** The window whose address people see: TensorBoard's own, not that of the frame we are in. */
function shownWindow() {
  try {
    return window.parent.location.href ? window.parent : window;
  } catch {
    return window;
  }
}

/** @returns {Partial<import("./types.js").State>} */
export function readLink() {
  const pairs = shownWindow().location.hash.replace(/^#/, "").split("&");
  const found = {};
  for (const pair of pairs) {
    const at = pair.indexOf("=");
    if (at > 0 && pair.startsWith(PREFIX)) found[pair.slice(PREFIX.length, at)] = decode(pair.slice(at + 1));
  }
  const state = {};
  for (const name of ["run", "compare", "stat", "anchor", "filter", "layer", "clip"]) {
    if (name in found) state[name] = found[name];
  }
  if (["parameter", "layer", "block"].includes(found.rows)) state.rows = found.rows;
  if (/^\d+$/.test(found.optimizer)) state.optimizer = Number(found.optimizer);
  if (/^-?\d+(\.\d+)?$/.test(found.step)) state.step = Number(found.step);
  for (const name of ["steps", "span"]) {
    const ends = (found[name] || "").split("~").map(Number);
    if (ends.length === 2 && ends.every(Number.isFinite) && ends[0] < ends[1]) state[name] = ends;
  }
  return state;
}

/** @param {import("./types.js").State} state */
export function writeLink(state) {
  const shown = shownWindow();
  const isTab = shown !== window;
  if (isTab && !shown.location.hash.startsWith("#gradguard")) return;
  const pairs = isTab ? ["gradguard"] : [];
  for (const [name, value] of Object.entries(state)) {
    if (value === null || value === "" || (name === "optimizer" && value === 0) || (name === "rows" && value === "parameter")) continue;
    const text = Array.isArray(value) ? value.map((end) => Math.round(end * 100) / 100).join("~") : String(value);
    pairs.push(`${PREFIX}${name}=${encodeURIComponent(text)}`);
  }
  const hash = `#${pairs.join("&")}`;
  if (hash !== shown.location.hash) shown.history.replaceState(shown.history.state, "", hash);
}

/** @param {function(): void} callback Called when the address was changed by hand or by going back. */
export function watchLink(callback) {
  shownWindow().addEventListener("hashchange", callback);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
