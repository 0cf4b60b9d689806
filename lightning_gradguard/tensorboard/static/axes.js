/** Row labels and the axis of steps. */

import { formatNumber, formatPower, formatStep } from "./format.js";
import { FONT, hasRoomForEach, LINE, rowToY, stepToX } from "./geometry.js";

const KIND = 96;

/** Shortened in the middle: names of layers differ at both ends. */
export function fitText(context, text, width) {
  const characters = Array.from(text); // a character of two code units is not cut in two
  let [head, tail] = [Math.ceil(characters.length / 2), Math.floor(characters.length / 2)];
  let cut = text;
  while (context.measureText(cut).width > width && tail > 1) {
    if (head > tail / 2) head--;
    else tail--;
    cut = `${characters.slice(0, head).join("")}…${characters.slice(-tail).join("")}`;
  }
  return cut;
}

/** How much of the beginning all texts share, up to and with a dot. @param {string[]} texts */
export function sharedLength(texts) {
  if (texts.length < 2) return 0;
  let shared = texts[0];
  for (const text of texts) while (!text.startsWith(shared)) shared = shared.slice(0, -1);
  return shared.lastIndexOf(".") + 1;
}

/** Shortened from the right: of kinds of modules and of titles the beginning tells most. */
export function fitEnd(context, text, width) {
  let cut = text;
  while (cut.length > 1 && context.measureText(cut === text ? text : `${cut}…`).width > width) cut = cut.slice(0, -1);
  return cut === text ? text : `${cut}…`;
}

/** Width of the longest row label, without and with its kind. @returns {{name: number, kind: number}} */
export function labelWidth(context, view) {
  context.font = FONT;
  const widest = (texts) => {
    const longest = texts.sort((a, b) => b.length - a.length).slice(0, 5);
    return Math.ceil(Math.max(0, ...longest.map((text) => context.measureText(text).width)));
  };
  const rows = view.visible.map((_, row) => row);
  return { name: widest(rows.map(view.nameOf)), kind: Math.min(KIND, widest(rows.map(view.kindOf))) };
}

/** Which rows get a label, so that none overlap; the beginnings of blocks go first. */
export function labelledRows(view, rect) {
  const [from, to] = view.span;
  const rows = Array.from({ length: to - from }, (_, i) => from + i);
  if (hasRoomForEach(rect.height, rows.length)) return rows.map((row) => ({ row, text: view.nameOf(row) }));
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

/** Names beside the rows, and the kinds of their modules where there is room for both. */
export function drawRowLabels(context, rect, view, palette, kindWidth) {
  context.font = FONT;
  context.textAlign = "right";
  context.textBaseline = "middle";
  const room = kindWidth ? kindWidth + 8 : 0;
  const labelled = labelledRows(view, rect);
  const width = rect.x - 12 - room;
  const isTooWide = labelled.some(({ text }) => context.measureText(text).width > width);
  const shared = isTooWide ? sharedLength(labelled.map(({ text }) => text)) : 0;
  for (const { row, text } of labelled) {
    const y = rowToY(rect, view.span, row);
    context.fillStyle = palette.ink;
    context.fillText(fitText(context, shared ? `…${text.slice(shared)}` : text, width), rect.x - 7 - room, y);
    context.fillStyle = palette.soft;
    if (room) context.fillText(fitEnd(context, view.kindOf(row), kindWidth), rect.x - 7, y);
  }
}

/** Round numbers, about one every 110 pixels. */
export function stepTicks(domain, width) {
  const wanted = Math.max(2, width / 110);
  const rough = (domain[1] - domain[0]) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const stride = Math.max(1, [1, 2, 5, 10].find((factor) => factor * power >= rough) * power);
  const ticks = [];
  for (let step = Math.max(0, Math.ceil(domain[0] / stride) * stride); step <= domain[1]; step += stride) ticks.push(step);
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

/**
 * Round numbers inside a range of logarithms, at least three: powers of ten, or 1, 2, 5, or as on a plain scale.
 * @returns {{value: number, text: string}[]}
 */
export function logTicks(low, high, limit) {
  for (const most of [limit, limit + 1, limit + 2]) {
    const powers = powerTicks(low, high, most).map(({ power, text }) => ({ value: 10 ** power, text }));
    if (powers.length >= 3) return powers;
  }
  for (const digits of [[1, 3], [1, 2, 5]]) {
    const ticks = [];
    for (let power = Math.floor(low); power <= high; power++) {
      for (const digit of digits) ticks.push(digit * 10 ** power);
    }
    const inside = ticks.filter((value) => value >= 10 ** low && value <= 10 ** high);
    if (inside.length >= 3) return inside.map((value) => ({ value, text: formatNumber(value) }));
  }
  return linearTicks(10 ** low, 10 ** high);
}

/** Round numbers inside a range, at least three. @returns {{value: number, text: string}[]} */
export function linearTicks(low, high) {
  const rough = 10 ** Math.ceil(Math.log10(high - low));
  const stride = [1, 0.5, 0.25, 0.2, 0.1, 0.05, 0.025].map((part) => part * rough).find((step) => countOf(low, high, step) >= 3);
  const ticks = [];
  for (let i = Math.ceil(low / stride); i * stride <= high; i++) ticks.push({ value: i * stride, text: formatNumber(i * stride) });
  return ticks;
}

function countOf(low, high, stride) {
  return Math.floor(high / stride) - Math.ceil(low / stride) + 1;
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
