/** What the picture shows and what its colours mean, in words. */

import { STATS } from "./cells.js";
import { formatFactor, formatNumber } from "./format.js";
import { BOLD, FONT } from "./geometry.js";
import { line } from "./strip.js";

const BAR = 260;
const MARKS = 96;

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
  const worst = view.state.stat === "coefficient" ? "smallest" : "largest";
  if (rect.width > 900) {
    context.fillText(`${stat.unit}, the ${worst} since the column before; input on top`, rect.x, rect.y + 22);
  }
  const x = rect.x + rect.width - BAR - MARKS - 70;
  drawBar(context, { x, y: rect.y + 15, width: BAR, height: 11 }, scale, palette);
  drawMarks(context, x + BAR + 62, rect.y, palette);
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
    ["NaN or infinite", () => fillBox(context, x, y + 2, palette.nonfinite)],
    ["exactly zero", () => dotted(context, x, y + 16, palette.zero)],
    ["no gradient", () => hatched(context, x, y + 30, palette.hatch)],
  ];
  context.textAlign = "left";
  context.textBaseline = "top";
  context.font = FONT;
  marks.forEach(([text, draw], i) => {
    draw();
    context.strokeStyle = palette.soft;
    context.strokeRect(x + 0.5, y + 2.5 + i * 14, 15, 9);
    context.fillStyle = palette.soft;
    context.fillText(text, x + 22, y + 1 + i * 14);
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
