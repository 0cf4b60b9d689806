/** Row labels and the axis of steps. */

import { formatPower, formatStep } from "./format.js";
import { FONT, rowToY, stepToX } from "./geometry.js";

const LINE = 13;

/** Shortened from the left, where names of neighbours are alike. */
export function fitText(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let cut = text;
  while (cut.length > 1 && context.measureText("…" + cut).width > width) cut = cut.slice(1);
  return "…" + cut;
}

/** Width of the longest row label. */
export function labelWidth(context, names) {
  context.font = FONT;
  const longest = [...names].sort((a, b) => b.length - a.length).slice(0, 5);
  return Math.ceil(Math.max(0, ...longest.map((name) => context.measureText(name).width)));
}

/** Which rows get a label, so that none overlap; the beginnings of blocks go first. */
export function labelledRows(view, rect) {
  const [from, to] = view.span;
  const rows = Array.from({ length: to - from }, (_, i) => from + i);
  if (rect.height / rows.length >= LINE - 1) return rows.map((row) => ({ row, text: view.nameOf(row) }));
  const starts = rows.filter((row) => row === from || view.blockOf(row) !== view.blockOf(row - 1));
  const useBlocks = starts.length < rows.length;
  const kept = [];
  let free = -Infinity;
  for (const row of useBlocks ? starts : rows) {
    const y = rowToY(rect, view.span, row);
    if (y < free) continue;
    kept.push({ row, text: useBlocks ? view.blockOf(row) : view.nameOf(row) });
    free = y + LINE;
  }
  return kept;
}

export function drawRowLabels(context, rect, view, palette) {
  context.font = FONT;
  context.fillStyle = palette.ink;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const { row, text } of labelledRows(view, rect)) {
    context.fillText(fitText(context, text, rect.x - 12), rect.x - 7, rowToY(rect, view.span, row));
  }
}

/** Round numbers, about one every 110 pixels. */
export function stepTicks(domain, width) {
  const wanted = Math.max(2, width / 110);
  const rough = (domain[1] - domain[0]) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const stride = Math.max(1, [1, 2, 5, 10].find((factor) => factor * power >= rough) * power);
  const ticks = [];
  for (let step = Math.ceil(domain[0] / stride) * stride; step <= domain[1]; step += stride) ticks.push(step);
  return ticks;
}

export function drawStepAxis(context, rect, view, palette) {
  context.font = FONT;
  context.textBaseline = "top";
  context.textAlign = "center";
  context.strokeStyle = palette.soft;
  context.lineWidth = 1;
  for (const step of stepTicks(view.domain, rect.width)) {
    const x = Math.round(stepToX(rect, view.domain, step)) + 0.5;
    context.beginPath();
    context.moveTo(x, rect.y);
    context.lineTo(x, rect.y + 4);
    context.stroke();
    context.fillStyle = palette.soft;
    context.fillText(formatStep(step), x, rect.y + 6);
  }
  context.fillStyle = palette.soft;
  context.fillText("step", rect.x + rect.width / 2, rect.y + 20);
}

/** Whole powers of ten inside a range of logarithms, at most `limit` of them. */
export function powerTicks(low, high, limit) {
  const stride = Math.max(1, Math.ceil((high - low) / limit));
  const ticks = [];
  for (let power = Math.ceil(low / stride) * stride; power <= high; power += stride) {
    ticks.push({ power, text: formatPower(power) });
  }
  return ticks;
}
