/** One step over depth, beside the picture and on the same rows: line of the step, band of the run, dashed other run. */

import { fitText, powerTicks } from "./axes.js";
import { STATS } from "./cells.js";
import { formatNumber, formatStep } from "./format.js";
import { columnAt } from "./frame.js";
import { BOLD, FONT, rowToY } from "./geometry.js";
import { NO_GRADIENT } from "./held.js";
import { quantileOf, sample } from "./statistics.js";
import { line } from "./strip.js";

const BAND_SAMPLES = 240;
const RATIO_DASH = [8, 3, 2, 3];

/**
 * 10, 50 and 90 % of every row over the run, and the range of all of them, as logarithms.
 * @param {Float32Array} values Row-major.
 * @param {number} columns
 */
export function profileBand(values, columns) {
  const rows = values.length / columns;
  const band = { low: new Float32Array(rows), middle: new Float32Array(rows), high: new Float32Array(rows) };
  for (let row = 0; row < rows; row++) {
    const sorted = sample(columns, (j) => logOf(values[row * columns + j]), BAND_SAMPLES);
    band.low[row] = quantileOf(sorted, 0.1);
    band.middle[row] = quantileOf(sorted, 0.5);
    band.high[row] = quantileOf(sorted, 0.9);
  }
  return band;
}

/** Range of logarithms that the profile's axis shows; nothing that moves with the pointer changes it. */
export function profileRange(view) {
  const columns = view.frame.steps.length;
  const logs = sample(view.visible.length * columns, (i) => {
    const row = view.visible[Math.floor(i / columns)];
    return logOf(view.values[row * columns + (i % columns)]);
  }, 8000);
  if (!logs.length) return [-1, 1];
  let low = quantileOf(logs, 0.005);
  let high = quantileOf(logs, 0.995);
  if (view.compare) {
    const other = sample(view.compare.values.length, (i) => logOf(view.compare.values[i]), 8000);
    low = Math.min(low, quantileOf(other, 0.005));
    high = Math.max(high, quantileOf(other, 0.995));
  }
  const spare = Math.max(0.15, (1.5 - (high - low)) / 2);
  return [low - spare, high + spare];
}

/** Grid, band and axis: what stays while the pointer moves. */
export function drawProfileBase(context, rect, view, palette) {
  const toX = scaleOf(rect, view.profileRange);
  context.font = FONT;
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const { power, text } of powerTicks(...view.profileRange, 5)) {
    const x = Math.round(toX(power)) + 0.5;
    context.strokeStyle = palette.faint;
    line(context, x, rect.y, x, rect.y + rect.height);
    context.fillStyle = palette.soft;
    if (x > rect.x + 10 && x < rect.x + rect.width - 10) context.fillText(text, x, rect.y + rect.height + 6);
  }
  context.fillStyle = palette.soft;
  context.fillText(STATS[view.state.stat].unit, rect.x + rect.width / 2, rect.y + rect.height + 20);
  if (view.cells.scale.middle !== null && view.state.anchor !== "clip") drawMiddle(context, rect, view.cells.scale.middle, palette.soft, [1, 3], toX);
  if (hasClipRatio(view)) drawMiddle(context, rect, Math.log10(view.frame.clipRatio), palette.ratio, RATIO_DASH, toX);
  drawBand(context, rect, view, palette, toX);
  context.strokeStyle = palette.faint;
  context.strokeRect(rect.x + 0.5, rect.y + 0.5, rect.width - 1, rect.height - 1);
}

/** The profile of one step, and of the other run at the same step. */
export function drawProfileStep(context, rect, view, palette, column) {
  const toX = scaleOf(rect, view.profileRange);
  context.save();
  context.beginPath();
  context.rect(rect.x, rect.y - 1, rect.width, rect.height + 2);
  context.clip();
  if (view.compare) {
    const { frame, values } = view.compare;
    const other = columnAt(frame.steps, view.frame.steps[column]);
    const get = (row) => {
      const match = view.compare.rowOf(view.visible[row]);
      return match >= 0 ? values[match * frame.steps.length + other] : NaN;
    };
    drawLine(context, rect, view, toX, get, palette.other, [2, 3], null);
  }
  const columns = view.frame.steps.length;
  const get = (row) => view.values[view.visible[row] * columns + column];
  drawLine(context, rect, view, toX, get, palette.line, [], palette);
  context.restore();
}

/** What the profile shows, in words above it. */
export function drawHeading(context, rect, view, palette, column, isPinned, height) {
  context.textAlign = "left";
  context.textBaseline = "top";
  context.font = BOLD;
  context.fillStyle = palette.ink;
  const step = formatStep(view.frame.steps[column]);
  context.fillText(`Depth profile at step ${step}${isPinned ? " (pinned)" : ""}`, rect.x, rect.y);
  const age = view.frame.steps[column] - view.frame.steps[view.held.source[column]];
  const stride = strideOf(height, view);
  const what = stride > 1 ? `this step, median of ${stride} rows each` : "this step, input on top";
  const entries = [
    { text: age ? `measured ${formatStep(age)} steps before` : what, colour: palette.line, dash: [] },
    { text: "10–90 % of the run", colour: palette.band, dash: null },
  ];
  if (view.compare) {
    const how = view.compare.isByName ? "" : ", by relative depth";
    entries.push({ text: `${view.compare.name}${how}`, colour: palette.other, dash: [2, 3] });
  }
  if (hasClipRatio(view)) {
    entries.push({ text: `AGC clips from ${formatNumber(view.frame.clipRatio)}`, colour: palette.ratio, dash: RATIO_DASH });
  }
  context.font = FONT;
  entries.forEach(({ text, colour, dash }, i) => {
    const y = rect.y + 21 + i * 16;
    context.strokeStyle = context.fillStyle = colour;
    if (dash === null) context.fillRect(rect.x, y, 20, 10);
    else {
      context.lineWidth = 2;
      context.setLineDash(dash);
      line(context, rect.x, y + 5, rect.x + 20, y + 5);
      context.setLineDash([]);
    }
    context.fillStyle = palette.soft;
    context.fillText(fitText(context, text, rect.width - 27), rect.x + 27, y);
  });
  context.lineWidth = 1;
}

/** Whether the line of the policy's own ratio means anything beside what is shown. */
function hasClipRatio(view) {
  return view.state.stat === "ratio" && view.frame.clipRatio > 0;
}

function drawMiddle(context, rect, log, colour, dash, toX) {
  const x = toX(log);
  if (x < rect.x || x > rect.x + rect.width) return;
  context.strokeStyle = colour;
  context.setLineDash(dash);
  line(context, x, rect.y, x, rect.y + rect.height);
  context.setLineDash([]);
}

function drawBand(context, rect, view, palette, toX) {
  const [from, to] = view.span;
  context.fillStyle = palette.band;
  context.beginPath();
  for (let row = from; row < to; row++) edge(context, rect, view, toX, view.band.low, row);
  for (let row = to - 1; row >= from; row--) edge(context, rect, view, toX, view.band.high, row);
  context.fill();
}

function edge(context, rect, view, toX, logs, row) {
  const log = logs[view.visible[row]];
  if (!Number.isNaN(log)) {
    const x = Math.max(rect.x, Math.min(rect.x + rect.width, toX(log)));
    context.lineTo(x, rowToY(rect, view.span, row));
  }
}

function drawLine(context, rect, view, toX, get, colour, dash, palette) {
  const [from, to] = view.span;
  const room = rect.height / (to - from);
  const dots = room >= 9;
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = room >= 2 ? 1.8 : 0.7;
  context.setLineDash(dash);
  context.beginPath();
  let down = false;
  const odd = [];
  const stride = strideOf(rect.height, view);
  for (let row = from; row < to; row += stride) {
    const value = stride > 1 ? typical(get, row, Math.min(row + stride, to)) : get(row);
    const y = rowToY(rect, view.span, row);
    if (!(value > 0) || value === Infinity) {
      odd.push({ value, y });
      down = false;
      continue;
    }
    const x = toX(Math.log10(value));
    if (down) context.lineTo(x, y);
    else context.moveTo(x, y);
    down = true;
    if (dots && palette) odd.push({ x, y });
  }
  context.stroke();
  context.setLineDash([]);
  context.lineWidth = 1;
  if (palette) drawOdd(context, rect, odd, colour, palette, room);
}

/** How many rows one point of the profile stands for. */
function strideOf(height, view) {
  const room = height / (view.span[1] - view.span[0]);
  return room < 1 ? Math.ceil(2 / room) : 1;
}

/** Of more rows than pixels what stands at one height: NaN where any is, else the median of those that are above zero. */
function typical(get, from, to) {
  const values = Array.from({ length: to - from }, (_, i) => get(from + i));
  const bad = values.find((value) => Number.isNaN(value) || value === Infinity);
  const usual = values.filter((value) => value > 0).sort((a, b) => a - b);
  return bad ?? usual[usual.length >> 1] ?? values[0];
}

/** A dot for each row; at the right edge a cross for NaN or infinity, at the left a grey square for zero, else a word. */
function drawOdd(context, rect, odd, colour, palette, room) {
  context.font = "bold 11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "center";
  for (const { x, y, value } of odd) {
    if (x !== undefined) {
      context.fillStyle = colour;
      context.beginPath();
      context.arc(x, y, 2.2, 0, 7);
      context.fill();
    } else if (value === 0) {
      context.fillStyle = palette.zero[0];
      context.fillRect(rect.x + 3, y - 3, 6, 6);
    } else if (Number.isNaN(value) || value === Infinity) {
      context.fillStyle = palette.bad;
      context.fillText("✕", rect.x + rect.width - 8, y);
    } else if (room >= 11) {
      context.font = FONT;
      context.textAlign = "left";
      context.fillStyle = palette.soft;
      context.fillText(value === NO_GRADIENT ? "no gradient" : "not measured", rect.x + 5, y);
      context.font = "bold 11px system-ui, sans-serif";
      context.textAlign = "center";
    }
  }
}

function scaleOf(rect, [low, high]) {
  return (log) => rect.x + ((log - low) / (high - low)) * rect.width;
}

function logOf(value) {
  return value > 0 && value < Infinity ? Math.log10(value) : NaN;
}
