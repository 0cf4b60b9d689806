/** What the user chose, and what is chosen for one who has not. */

import { STATS } from "./cells.js";

/** @returns {import("./types.js").State} */
export function emptyState() {
  return {
    run: "", compare: "", optimizer: 0, stat: "", anchor: "", rows: "parameter", filter: "",
    step: null, layer: "", steps: null, span: null, clip: "",
  };
}

/** The first of these that the run has is shown: a ratio means the same in every model, a norm does not. */
const PREFERRED = ["ratio", "norm"];

/**
 * Puts something valid in place of what is missing or does not fit the data.
 * @param {import("./types.js").State} state
 * @param {import("./types.js").Frame} frame
 */
export function settle(state, { measured, clipRatio }) {
  const stat = measured.includes(state.stat) ? state.stat : PREFERRED.find((name) => measured.includes(name)) || measured[0] || "norm";
  const anchors = anchorsOf(stat, state.compare, clipRatio);
  const usual = anchors.includes("clip") ? "clip" : anchors[0];
  const anchor = anchors.includes(state.anchor) ? state.anchor : usual;
  return { ...state, stat, anchor };
}

/** What the middle colour can mean for a statistic; compared run and clipping ratio only if there is one. */
export function anchorsOf(stat, compare, clipRatio) {
  const has = { compare, clip: clipRatio };
  return STATS[stat].anchors.filter((anchor) => !(anchor in has) || has[anchor]);
}
