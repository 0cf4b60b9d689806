/** Puts together what is drawn: rows, values, colours, bands, and how the compared run fits onto them. */

import { makeCells } from "./cells.js";
import { columnAt } from "./frame.js";
import { fullDomain } from "./geometry.js";
import { holdLast, NOT_MEASURED } from "./held.js";
import { profileBand, profileRange } from "./profile.js";
import { filterRows, groupRows, kindsOf, rowValues } from "./rows.js";

/**
 * @param {Object} input
 * @param {import("./types.js").State} input.state
 * @param {import("./types.js").Frame} input.frame Of the shown statistic.
 * @param {import("./types.js").Frame|null} input.other The same of the compared run.
 * @param {import("./types.js").EventList} input.events
 * @returns {import("./types.js").View}
 */
export function makeView({ state, frame, other, events }) {
  const rows = groupRows(frame.layers, state.rows);
  const columns = frame.steps.length;
  const held = holdLast(rowValues(frame, rows), columns);
  const { visible, problem } = filterRows(rows.names, state.filter);
  const compare = other ? fitCompared(state, rows, other) : null;
  const choice = { stat: state.stat, anchor: state.anchor, clipRatio: frame.clipRatio, compareName: state.compare };
  const cells = makeCells(held.values, columns, { ...choice, compared: compare ? comparedValue(frame, compare) : undefined });
  if (compare && state.anchor !== "compare") {
    compare.cells = makeCells(onto(rows, compare), compare.frame.steps.length, { ...choice, reach: cells.scale.reach });
  }
  const kinds = kindsOf(frame, rows);
  const view = {
    state, frame, rows, values: held.values, held, visible, problem, compare, cells, events,
    marks: marksOf(events, frame),
    band: profileBand(held.values, columns),
    nameOf: (row) => rows.names[visible[row]],
    kindOf: (row) => kinds[visible[row]],
    blockOf: (row) => rows.blocks[visible[row]],
  };
  view.profileRange = profileRange(view);
  return zoom(view, state);
}

/** The same view over other steps and rows. */
export function zoom(view, state) {
  const [first, last] = fullDomain(view.frame.steps);
  const steps = state.steps || [first, last];
  view.domain = [Math.max(first, Math.min(steps[0], last)), Math.min(last, Math.max(steps[1], first))];
  if (!(view.domain[1] > view.domain[0])) view.domain = [first, last];
  const count = Math.max(1, view.visible.length);
  const [from, to] = state.span || [0, count];
  view.span = from < to && from >= 0 && to <= count ? [from, to] : [0, count];
  view.isZoomed = Boolean(state.steps || state.span);
  view.state = state;
  return view;
}

/** Rows of the compared run by name; by relative depth where fewer than half of the names are shared. */
function fitCompared(state, rows, frame) {
  const otherRows = groupRows(frame.layers, state.rows);
  const position = new Map(otherRows.names.map((name, i) => [name, i]));
  const shared = rows.names.filter((name) => position.has(name)).length;
  const isByName = shared >= rows.names.length / 2;
  const stretch = (otherRows.names.length - 1) / Math.max(1, rows.names.length - 1);
  return {
    name: state.compare,
    frame,
    values: holdLast(rowValues(frame, otherRows), frame.steps.length).values,
    cells: null,
    isByName,
    nameOf: (row) => otherRows.names[row],
    rowOf: (row) => (isByName ? position.get(rows.names[row]) ?? -1 : Math.round(row * stretch)),
  };
}

/** Values of the compared run on the rows of this one; a layer that it does not have was not measured. */
function onto(rows, compare) {
  const count = compare.frame.steps.length;
  const values = new Float32Array(rows.names.length * count).fill(NOT_MEASURED);
  rows.names.forEach((_, row) => {
    const other = compare.rowOf(row);
    if (other >= 0) values.set(compare.values.subarray(other * count, (other + 1) * count), row * count);
  });
  return values;
}

function comparedValue(frame, compare) {
  const columns = Array.from(frame.steps, (step) => columnAt(compare.frame.steps, step));
  const count = compare.frame.steps.length;
  return (row, j) => {
    const other = compare.rowOf(row);
    const value = other >= 0 ? compare.values[other * count + columns[j]] : NaN;
    return value > 0 ? value : NaN;
  };
}

/** The events, and every non-finite column that the bounded list of events no longer has. */
function marksOf(events, frame) {
  const bad = new Set(["nonfinite", "overflow", "rollback"]);
  const known = new Set(events.events.filter((event) => bad.has(event.kind)).map((event) => event.step));
  const more = [];
  frame.step.num_nonfinite.forEach((count, j) => {
    const from = j ? frame.steps[j - 1] : -Infinity;
    const listed = [...known].some((step) => step > from && step <= frame.steps[j]);
    if (count > 0 && !listed) {
      more.push({ step: frame.steps[j], kind: "nonfinite", text: `${count} non-finite steps`, layers: [], num_layers: 0 });
    }
  });
  return [...events.events, ...more].sort((a, b) => a.step - b.step);
}
