/** Where a key leads: each function gives the part of the state that changes. */

import { fullDomain } from "./geometry.js";

/**
 * The pin, some columns and rows further, inside what is shown.
 * @param {Object} view
 * @param {{column: number, row: number|null}} pinned
 * @param {number} columns May be infinite: to the end.
 * @param {number} rows
 * @returns {{step: number, layer: string}}
 */
export function movedPin(view, pinned, columns, rows) {
  const { steps } = view.frame;
  const [first, end] = view.span;
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
  const column = clamp(pinned.column + columns, 0, steps.length - 1);
  if (pinned.row === null && !rows) return { step: steps[column], layer: "" };
  const row = pinned.row === null ? first : clamp(pinned.row + rows, first, end - 1);
  return { step: steps[column], layer: view.nameOf(row) };
}

/**
 * The pin at the next event, or at the one before; null if there is none.
 * @param {Object} view
 * @param {number|null} step Where the pin is.
 * @param {1|-1} by
 */
export function pinAtEvent(view, step, by) {
  const from = step ?? (by > 0 ? -Infinity : Infinity);
  const later = view.marks.filter((mark) => (by > 0 ? mark.step > from : mark.step < from));
  const mark = by > 0 ? later[0] : later[later.length - 1];
  return mark ? { step: mark.step, layer: mark.layers[0] || "" } : null;
}

/**
 * The shown steps, stretched around the pin; all of them, and all rows, for an infinite factor.
 * @param {Object} view
 * @param {number|null} step Where the pin is.
 * @param {number} factor Below 1 zooms in.
 */
export function zoomedSteps(view, step, factor) {
  if (factor === Infinity) return { steps: null, span: null };
  const [from, to] = view.domain;
  const [first, last] = fullDomain(view.frame.steps);
  const centre = step ?? (from + to) / 2;
  const half = ((to - from) * factor) / 2;
  const steps = [Math.max(first, centre - half), Math.min(last, centre + half)];
  return { steps: steps[0] <= first && steps[1] >= last ? null : steps };
}
