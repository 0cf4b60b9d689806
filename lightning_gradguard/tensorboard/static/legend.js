/** What the picture shows and what its colours mean, in words. */

import { STATS } from "./cells.js";
import { fitEnd } from "./axes.js";
import { formatFactor, formatNumber, formatShare } from "./format.js";
import { BOLD, FONT } from "./geometry.js";
import { line } from "./strip.js";

const BAR = { wide: 240, narrow: 150 };
const MARK = 104;

export function drawLegend(context, rect, view, palette) {
  const { scale } = view.cells;
  const stat = STATS[view.state.stat];
  context.textBaseline = "top";
  context.textAlign = "left";
  context.fillStyle = palette.ink;
  context.font = BOLD;
  context.fillText(`${stat.label}, layer by layer`, rect.x, rect.y + 4);
  context.font = FONT;
  context.fillStyle = palette.soft;
  const isWide = rect.height < 60;
  const marks = { x: isWide ? rect.x + rect.width - 2 * MARK - 8 : rect.x, y: rect.y + (isWide ? 6 : 88) };
  const width = isWide ? BAR.wide : BAR.narrow;
  const bar = { x: isWide ? marks.x - width - 80 : rect.x + 60, y: rect.y + (isWide ? 17 : 52), width, height: 11 };
  const room = isWide ? bar.x - 70 : rect.width;
  context.fillText(fitEnd(context, subtitle(view, stat), room), rect.x, rect.y + 21);
  drawBar(context, bar, scale, palette);
  drawMarks(context, marks.x, marks.y, palette);
}

function subtitle(view, stat) {
  const worst = view.state.stat === "coefficient" ? "smallest" : "largest";
  const held = view.held.share < 1 ? `; measured at ${formatShare(view.held.share)} of columns, held in between` : "";
  return `${stat.unit}, ${worst} since the column before${held}; input on top`;
}

function drawBar(context, bar, scale, palette) {
  const ramp = scale.ramp === "sequential" ? palette.sequentialRamp : palette.divergingRamp;
  for (let x = 0; x < bar.width; x++) {
    const colour = ramp[Math.round((x / (bar.width - 1)) * 255)];
    context.fillStyle = `rgb(${colour & 255},${(colour >> 8) & 255},${(colour >> 16) & 255})`;
    context.fillRect(bar.x + x, bar.y, 1.5, bar.height);
  }
  context.strokeStyle = palette.soft;
  const middle = bar.x + bar.width / 2;
  if (scale.ramp === "diverging") line(context, middle, bar.y - 2, middle, bar.y + bar.height + 2);
  context.font = FONT;
  context.fillStyle = palette.soft;
  context.textBaseline = "bottom";
  context.textAlign = "left";
  context.fillText(scale.low, bar.x, bar.y - 2);
  context.textAlign = "right";
  context.fillText(scale.high, bar.x + bar.width, bar.y - 2);
  context.textBaseline = "top";
  const [left, right] = endsOf(scale);
  context.textAlign = "right";
  context.fillText(left, bar.x - 6, bar.y);
  context.textAlign = "left";
  context.fillText(right, bar.x + bar.width + 6, bar.y);
  context.textAlign = "center";
  context.fillStyle = palette.ink;
  context.fillText(scale.centre, middle, bar.y + bar.height + 4);
}

function endsOf(scale) {
  if (scale.ramp === "sequential") return ["1", formatNumber(10 ** -scale.reach[0])];
  const [down, up] = scale.reach;
  if (scale.middle === null) return [formatFactor(10 ** -down), formatFactor(10 ** up)];
  return [10 ** (scale.middle - down), 10 ** (scale.middle + up)].map(formatNumber);
}

function drawMarks(context, x, y, palette) {
  const marks = [
    ["NaN or infinite", (at, top) => fillBox(context, at, top, palette.nonfinite)],
    ["exactly zero", (at, top) => dotted(context, at, top, palette.zero)],
    ["no gradient", (at, top) => hatched(context, at, top, palette.hatch)],
    ["not measured", (at, top) => fillBox(context, at, top, palette.paper)],
  ];
  context.textAlign = "left";
  context.textBaseline = "top";
  context.font = FONT;
  marks.forEach(([text, draw], i) => {
    const at = x + (i % 2) * (MARK + 8);
    const top = y + Math.floor(i / 2) * 16;
    draw(at, top);
    context.strokeStyle = palette.soft;
    context.strokeRect(at + 0.5, top + 0.5, 15, 9);
    context.fillStyle = palette.soft;
    context.fillText(text, at + 22, top - 1);
  });
}

function fillBox(context, x, y, colour) {
  context.fillStyle = colour;
  context.fillRect(x, y, 16, 10);
}

function dotted(context, x, y, [ground, dot]) {
  fillBox(context, x, y, ground);
  context.fillStyle = dot;
  for (let i = 0; i < 16; i += 4) for (let j = 0; j < 10; j += 4) context.fillRect(x + i, y + j, 2, 2);
}

function hatched(context, x, y, [ground, stroke]) {
  fillBox(context, x, y, ground);
  context.save();
  context.beginPath();
  context.rect(x, y, 16, 10);
  context.clip();
  context.strokeStyle = stroke;
  context.lineWidth = 1.5;
  for (let i = -10; i < 16; i += 6) line(context, x + i + 10, y, x + i, y + 10);
  context.restore();
}
