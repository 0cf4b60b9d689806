/** The bar above the picture: which run, what of it, and how. */

import { ANCHORS, STATS } from "./cells.js";
import { debounce, el } from "./dom.js";
import { isByParameter } from "./rows.js";
import { anchorsOf } from "./state.js";

/**
 * @param {Object} input
 * @param {import("./types.js").State} input.state
 * @param {import("./types.js").RunInfo[]} input.runs
 * @param {import("./types.js").Frame|null} input.frame
 * @param {function(Partial<import("./types.js").State>): void} input.change
 * @param {function(string): void} input.filter Called with what was typed into the filter.
 * @param {Object<string, function(): void>} input.actions runs, png, csv, keys.
 */
export function makeControls({ state, runs, frame, change, filter, actions }) {
  const names = runs.map((run) => [run.name, run.name || "."]);
  const others = names.filter(([name]) => name !== state.run);
  const optimizers = runs.find((run) => run.name === state.run)?.optimizers || [0];
  const measured = frame ? Object.keys(STATS).filter((stat) => frame.measured.includes(stat)) : [];
  const bar = el("div", { class: "controls", role: "toolbar", "aria-label": "What to show" });
  if (runs.length > 1) {
    const text = `‹ All ${runs.length} runs`;
    bar.append(el("button", { class: "button", id: "all-runs", text, title: "List all runs", onclick: actions.runs }));
  }
  bar.append(choice("run", "Run", names, state.run, (run) => change({ run, step: null, layer: "", steps: null, span: null })));
  bar.append(choice("compare", "Compare", [["", "none"], ...others], state.compare, (compare) => change({ compare })));
  if (optimizers.length > 1) {
    const entries = optimizers.map((number) => [String(number), `optimizer ${number}`]);
    const pick = (value) => change({ optimizer: Number(value), layer: "", span: null });
    bar.append(choice("optimizer", "Optimizer", entries, String(state.optimizer), pick));
  }
  if (frame) {
    bar.append(
      choice("stat", "Show", measured.map((stat) => [stat, STATS[stat].label]), state.stat, (stat) => change({ stat, anchor: "" })),
      choice("anchor", "Colour against", anchorEntries(state, frame), state.anchor, (anchor) => change({ anchor })),
      choice("rows", "Rows", rowEntries(frame), state.rows, (rows) => change({ rows, layer: "", span: null })),
      filterBox(state.filter, filter),
    );
  }
  const last = el("span", { class: "actions" }, el("span", { class: "live", id: "live", role: "status" }));
  for (const [id, text, title] of [
    ["png", "PNG", "Save the picture as an image (S)"],
    ["csv", "CSV", "Save the values of the picture as a table (C)"],
    ["keys", "Keys", "Keyboard and mouse (?)"],
  ]) {
    last.append(el("button", { class: "button", id: `save-${id}`, text, title, onclick: actions[id] }));
  }
  bar.append(last);
  return bar;
}

function choice(id, label, entries, value, pick) {
  const select = el("select", { id, onchange: () => pick(select.value) });
  for (const [key, text] of entries) select.append(el("option", { value: key, text, selected: key === value }));
  return el("label", { class: "field", for: id }, el("span", { text: label }), select);
}

function anchorEntries(state, frame) {
  return anchorsOf(state.stat, state.compare, frame.clipRatio).map((anchor) => [anchor, ANCHORS[anchor]]);
}

function rowEntries(frame) {
  const finest = isByParameter(frame.layers) ? [["parameter", "parameters"], ["layer", "layers"]] : [["parameter", "layers"]];
  return [...finest, ["block", "blocks"]];
}

function filterBox(value, filter) {
  const box = el("input", { id: "filter", type: "search", placeholder: "regular expression", spellcheck: "false" });
  box.value = value; // set as a property, so that the caret is at its end
  box.addEventListener("input", debounce(() => filter(box.value), 200));
  const problem = el("span", { class: "problem", id: "filter-problem", role: "alert" });
  return el("label", { class: "field", for: "filter" }, el("span", { text: "Filter " }, problem), box);
}
