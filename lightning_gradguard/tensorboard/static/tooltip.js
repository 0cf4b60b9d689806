/** All that is known of the cell under the pointer. */

import { STATS } from "./cells.js";
import { el } from "./dom.js";
import { formatNumber, formatStep } from "./format.js";
import { columnAt } from "./frame.js";
import { holdLast, NO_GRADIENT, NOT_MEASURED } from "./held.js";
import { groupRows, rowValues } from "./rows.js";

/** A value in words. @param {number} value */
export function inWords(value) {
  if (value === NO_GRADIENT) return "no gradient";
  if (value === NOT_MEASURED) return "not measured";
  if (Number.isNaN(value)) return "NaN";
  return value === Infinity ? "infinite" : formatNumber(value);
}

/**
 * @param {Object} view
 * @param {Object<string, import("./types.js").Frame>} frames Those that are loaded, by statistic.
 * @param {number} column
 * @param {number} row Among the visible rows.
 * @returns {{title: string, lines: [string, string][]}}
 */
export function describeCell(view, frames, column, row) {
  const at = view.visible[row];
  const { steps, step, shapes } = view.frame;
  const lines = [["step", stepRange(steps, step, column)]];
  for (const [stat, { label }] of Object.entries(STATS)) {
    const frame = frames[stat];
    if (!frame || !frame.measured.includes(stat) || frame.steps.length !== steps.length) continue;
    const held = heldOf(frame, view);
    const age = steps[column] - steps[held.source[column]];
    const words = inWords(held.values[at * steps.length + column]) + (age ? `, measured ${formatStep(age)} steps before` : "");
    lines.push([label.toLowerCase(), words]);
  }
  lines.push(["total norm", inWords(step.total_norm[column])]);
  if (step.loss[column] !== -Infinity) lines.push(["loss", lossInWords(step.loss[column])]);
  if (step.early[column] > 0) lines.push(["sampled", "by the probes, between two logged steps"]);
  if (step.threshold[column] >= 0) lines.push(["clip threshold", inWords(step.threshold[column])]);
  if (step.num_clipped[column] > 0) {
    lines.push(["clipped", `${step.num_clipped[column]} of ${step.num_steps[column]} steps, to ${inWords(step.coefficient[column])}`]);
  }
  if (step.num_nonfinite[column] > 0) lines.push(["non-finite", `${step.num_nonfinite[column]} of ${step.num_steps[column]} steps`]);
  const members = view.rows.members[at];
  if (view.kindOf(row)) lines.push(["kind", view.kindOf(row)]);
  if (members.length === 1 && shapes[members[0]]) lines.push(["shape", shapes[members[0]]]);
  if (members.length > 1) lines.push(["holds", `${members.length} rows`]);
  return { title: view.nameOf(row), lines };
}

/** The same of the compared run, at the nearest step and on the row that it is fitted to. */
export function describeCompared(view, _frames, column, row) {
  const { frame, values, rowOf, nameOf, name } = view.compare;
  const at = columnAt(frame.steps, view.frame.steps[column]);
  const other = rowOf(view.visible[row]);
  const value = other >= 0 ? inWords(values[other * frame.steps.length + at]) : "no such layer";
  const stat = STATS[view.state.stat].label.toLowerCase();
  const lines = [["step", formatStep(frame.steps[at])], [stat, value], ["total norm", inWords(frame.step.total_norm[at])]];
  return { title: `${name}: ${other >= 0 ? nameOf(other) : view.nameOf(row)}`, lines };
}

/** A loss in words: other than norms it may be negative. @param {number} value */
export function lossInWords(value) {
  return Number.isNaN(value) ? "NaN" : Number.isFinite(value) ? formatNumber(value) : "infinite";
}

const heldByFrame = new WeakMap();

/** Values of a statistic on the rows of the view, held where they were not measured; kept, the pointer asks at every move. */
function heldOf(frame, view) {
  if (frame.stat === view.state.stat) return { values: view.values, source: view.held.source };
  const known = heldByFrame.get(frame);
  if (known?.grouping === view.state.rows) return known;
  const held = holdLast(rowValues(frame, groupRows(frame.layers, view.state.rows)), frame.steps.length);
  heldByFrame.set(frame, { ...held, grouping: view.state.rows });
  return held;
}

/** Shows text beside the pointer, inside the window. */
export class Tooltip {
  constructor() {
    this.node = el("div", { class: "tooltip", id: "tooltip", role: "status", hidden: true });
    document.body.append(this.node);
  }

  show({ title, lines }, clientX, clientY) {
    const table = el("table", {}, ...lines.map(([name, value]) => el("tr", {}, el("th", { text: name }), el("td", { text: value }))));
    this.node.replaceChildren(el("b", { text: title }), table);
    this.node.hidden = false;
    const { width, height } = this.node.getBoundingClientRect();
    const left = clientX + 18 + width > window.innerWidth ? clientX - width - 14 : clientX + 18;
    const top = Math.min(clientY + 14, window.innerHeight - height - 6);
    this.node.style.left = `${Math.max(4, left)}px`;
    this.node.style.top = `${Math.max(4, top)}px`;
  }

  hide() {
    this.node.hidden = true;
  }
}

function stepRange(steps, step, column) {
  const count = step.num_steps[column];
  return count > 1 ? `${formatStep(steps[column])}, worst of ${formatStep(count)}` : formatStep(steps[column]);
}
