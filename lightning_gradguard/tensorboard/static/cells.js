/** From values to colours: what the middle of the ramp means, and where every cell lies on it. */

import { MARK_NO_GRADIENT, MARK_NONFINITE, MARK_NOT_MEASURED, MARK_ZERO } from "./palette.js";
import { formatNumber } from "./format.js";
import { NO_GRADIENT, NOT_MEASURED } from "./held.js";
import { medianOf, quantileOf, sample } from "./statistics.js";


/** What of a layer can be shown. */
export const STATS = {
  ratio: { label: "Gradient ÷ weight", unit: "‖g‖ / ‖w‖", anchors: ["recent", "step", "run", "layer", "clip", "compare"] },
  norm: { label: "Gradient norm", unit: "‖g‖", anchors: ["recent", "step", "run", "layer", "compare"] },
  update: { label: "Update ÷ weight", unit: "‖Δw‖ / ‖w‖", anchors: ["recent", "step", "run", "layer", "rule", "compare"] },
  coefficient: { label: "Clip coefficient", unit: "applied / raw", anchors: ["one"] },
};

/** What the middle colour can mean. */
export const ANCHORS = {
  recent: "the median layer, recent steps",
  clip: "the clipping ratio",
  rule: "1e-3, the rule of thumb",
  run: "the whole run",
  step: "the median layer, that step",
  layer: "the layer’s own past",
  compare: "the compared run",
  one: "1, not clipped",
};

// Colours are full from three decades away: in ten healthy networks of ten kinds less than a fifth of the cells is even
// a third of the way, in those that are sick over depth about half of them. Changes of a layer itself are smaller.
const LEAST_REACH = { layer: 1.5, compare: 1.5, one: 1 };
// A gradient a hundred times the weight, or a hundred millionth of it, is no middle, whatever the other layers have.
const SANE_RATIO = [-8, 2];
const RULE_OF_THUMB = 1e-3;
const HALF = 127.5;

/**
 * @param {Float32Array} values Row-major [rows × columns].
 * @param {number} columns
 * @param {Object} choice
 * @param {string} choice.stat
 * @param {string} choice.anchor
 * @param {number|null} choice.clipRatio
 * @param {function(number, number): number} [choice.compared] Value of the compared run for row and column, NaN if none.
 * @param {string} [choice.compareName]
 * @param {[number, number]} [choice.reach] That of another picture, so that colours mean the same in both.
 * @returns {import("./types.js").Cells}
 */
export function makeCells(values, columns, choice) {
  const logs = values.map((value) => (value > 0 && value < Infinity ? Math.log10(value) : NaN));
  const { decades, middle } = distances(logs, columns, choice);
  const sequential = choice.anchor === "one";
  const reach = choice.reach || reachOf(decades, choice.anchor);
  const index = new Uint16Array(values.length);
  const weight = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    const distance = decades[i];
    if (value === NO_GRADIENT || value === NOT_MEASURED) {
      index[i] = value === NO_GRADIENT ? MARK_NO_GRADIENT : MARK_NOT_MEASURED;
      weight[i] = value;
    } else if (value === 0) {
      index[i] = MARK_ZERO;
      weight[i] = 1e5;
    } else if (!Number.isFinite(value)) {
      index[i] = MARK_NONFINITE;
      weight[i] = 1e6;
    } else if (Number.isNaN(distance)) {
      index[i] = MARK_NOT_MEASURED;
      weight[i] = NOT_MEASURED;
    } else {
      const place = Math.max(-1, Math.min(1, distance / reach[distance < 0 ? 0 : 1]));
      index[i] = sequential ? Math.round(-Math.min(0, place) * 255) : Math.round(HALF + place * HALF);
      weight[i] = Math.abs(distance);
    }
  }
  return { index, weight, scale: { ramp: sequential ? "sequential" : "diverging", reach, middle, ...words(choice, middle) } };
}

/** Decades of every cell from its middle; `middle` is null where it is not one number. */
function distances(logs, columns, choice) {
  const rows = logs.length / columns;
  const fixed = { clip: choice.clipRatio, rule: RULE_OF_THUMB, one: 1 }[choice.anchor];
  if (fixed !== undefined) return { decades: shift(logs, () => Math.log10(fixed)), middle: Math.log10(fixed) };
  if (choice.anchor === "step" || choice.anchor === "recent") {
    const ofStep = Float32Array.from({ length: columns }, (_, j) => medianOf(sample(rows, (r) => logs[r * columns + j], 400)));
    const middles = choice.anchor === "step" ? ofStep : levelSoFar(ofStep, choice.stat === "ratio" ? SANE_RATIO : null);
    return { decades: shift(logs, (i) => middles[i % columns]), middle: null };
  }
  if (choice.anchor === "layer") return { decades: fromOwnPast(logs, rows, columns), middle: null };
  if (choice.anchor === "compare" && choice.compared) {
    const other = (i) => Math.log10(choice.compared(Math.floor(i / columns), i % columns));
    return { decades: shift(logs, other), middle: null };
  }
  const middle = medianOf(sample(logs.length, (i) => logs[i], 20000));
  return { decades: shift(logs, () => middle), middle };
}

function shift(logs, middle) {
  return logs.map((log, i) => log - middle(i));
}

/** Each cell against a running mean of the same row before it. */
function fromOwnPast(logs, rows, columns) {
  const decades = new Float32Array(logs.length);
  for (let row = 0; row < rows; row++) {
    const own = logs.subarray(row * columns, (row + 1) * columns);
    const level = levelSoFar(own, null);
    own.forEach((log, j) => (decades[row * columns + j] = log - level[j]));
  }
  return decades;
}

/**
 * What was usual before each of some logarithms: a running mean that one outlier moves by no more than half a decade / 30.
 * So a spike stands out from it, and a slow change does not.
 * @param {Float32Array} logs
 * @param {[number, number]|null} bounds Beyond which nothing is usual.
 */
function levelSoFar(logs, bounds) {
  const [low, high] = bounds || [-Infinity, Infinity];
  let mean = NaN;
  let seen = 0;
  return logs.map((log) => {
    if (!Number.isNaN(log) && seen++ === 0) mean = log;
    const level = Math.max(low, Math.min(high, mean));
    if (!Number.isNaN(log)) mean += Math.max(-0.5, Math.min(0.5, log - mean)) / Math.min(seen, 30);
    return level;
  });
}

/** Each side of the middle reaches as far as all but 2 % of the cells; the two need not be alike. */
function reachOf(decades, anchor) {
  const sequential = anchor === "one";
  const sorted = sample(decades.length, (i) => decades[i], 20000);
  const least = LEAST_REACH[anchor] ?? 3;
  const half = (far) => Math.min(15, Math.max(least, Math.ceil((far || 0) * 2) / 2));
  return [half(-quantileOf(sorted, sequential ? 0.002 : 0.01)), half(quantileOf(sorted, 0.99))];
}

function words(choice, middle) {
  return {
    clip: { low: "far below", centre: `${formatNumber(choice.clipRatio)}, the clipping ratio`, high: "clipped" },
    recent: { low: "smaller", centre: "median layer, recent steps", high: "larger" },
    rule: { low: "learns slowly", centre: "1e-3, a rule of thumb", high: "moves fast" },
    run: { low: "smaller", centre: `${formatNumber(10 ** middle)}, typical of this run`, high: "larger" },
    step: { low: "smaller", centre: "median layer of that step", high: "larger" },
    layer: { low: "has fallen", centre: "as the layer was before", high: "has risen" },
    compare: { low: "smaller", centre: `as in ${choice.compareName}`, high: "larger" },
    one: { low: "not clipped", centre: "", high: "clipped hard" },
  }[choice.anchor];
}
