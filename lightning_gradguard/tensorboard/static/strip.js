/** Curves over steps above the picture: the total norm or the row that is looked at, and the loss. */

import { fitText, linearTicks, logTicks } from "./axes.js";
import { STATS } from "./cells.js";
import { BOLD, columnToX, FONT, stepToX } from "./geometry.js";
import { quantileOf, sample } from "./statistics.js";

/** Width of a curve below which its key begins at the left edge. */
const NARROW = 400;

/** A loss that was not known; the mark of flow.py. */
const NO_LOSS = -Infinity;
const HEAD = 18;

/**
 * The total norm with its threshold and the compared run, or the row that is looked at.
 * @param {CanvasRenderingContext2D} context
 * @param {import("./types.js").Rect} rect
 * @param {import("./types.js").View} view
 * @param {Object} palette
 * @param {{row: number}|null} focus Row to show instead of the total, or null.
 */
export function drawStrip(context, rect, view, palette, focus) {
  const curves = focus ? rowCurves(view, focus.row) : totalCurves(view);
  drawCurves(context, rect, view, palette, curves, axisOf(curves, view.domain, { isLog: true, least: 0.8 }));
}

/** The loss, and that of the compared run: logarithmic where it is positive and falls far. */
export function drawLoss(context, rect, view, palette) {
  const curves = lossCurves(view);
  const sorted = curves.flatMap((curve) => Array.from(shownValues(curve, view.domain, Number.isFinite)));
  const low = Math.min(...sorted);
  const high = Math.max(...sorted);
  const isLog = low > 0 && high / low > 20;
  const least = isLog ? 0.8 : 0.05 * Math.max(Math.abs(low), Math.abs(high)) || 1; // so that ticks differ in three digits
  drawCurves(context, rect, view, palette, curves, axisOf(curves, view.domain, { isLog, least }));
}

/** Whether the loss of the run is known at any column. @param {import("./types.js").Frame} frame */
export function hasLoss(frame) {
  return frame.step.loss?.some((value) => value !== NO_LOSS) ?? false;
}

function totalCurves(view) {
  const { steps, step } = view.frame;
  const curves = [{ label: "Total gradient norm", steps, get: (j) => step.total_norm[j], colour: "line", dash: [] }];
  if (view.curve?.steps.length) {
    const { curve } = view; // every step, not only the largest of each column
    curves.push({ label: "every step", steps: curve.steps, get: (j) => curve.norms[j], colour: "soft", dash: [] });
    if (curve.thresholds) {
      const get = (j) => curve.thresholds[j];
      curves.push({ label: `${curve.policy} clips above`, steps: curve.steps, get, colour: "clip", dash: [2, 2] });
    }
  }
  if (step.threshold.some((value) => value > 0)) {
    curves.push({ label: "clip threshold", steps, get: (j) => step.threshold[j], colour: "clip", dash: [6, 4] });
  }
  if (view.compare) {
    const other = view.compare.frame;
    curves.push(compared(view.compare.name, other.steps, (j) => other.step.total_norm[j]));
  }
  return curves;
}

function rowCurves(view, row) {
  const columns = view.frame.steps.length;
  const base = view.visible[row] * columns;
  const label = `${view.nameOf(row)} · ${STATS[view.state.stat].label.toLowerCase()}`;
  const curves = [{ label, steps: view.frame.steps, get: (j) => view.values[base + j], colour: "line", dash: [] }];
  const other = view.compare && view.compare.rowOf(view.visible[row]);
  if (other !== null && other !== undefined && other >= 0) {
    const { frame, values, name } = view.compare;
    curves.push(compared(name, frame.steps, (j) => values[other * frame.steps.length + j]));
  }
  return curves;
}

function lossCurves(view) {
  const { steps, step } = view.frame;
  const curves = [{ label: "Loss", steps, get: (j) => step.loss[j], colour: "line", dash: [] }];
  if (view.compare && hasLoss(view.compare.frame)) {
    const other = view.compare.frame;
    curves.push(compared(view.compare.name, other.steps, (j) => other.step.loss[j]));
  }
  return curves;
}

function compared(label, steps, get) {
  return { label, steps, get, colour: "other", dash: [2, 3] };
}

/**
 * What a height means: up to all but the highest and lowest few values of long runs, at least some way apart.
 * @returns {{isDrawn: function(number): boolean, place: function(number): number, ticks: {value: number, text: string}[]}}
 */
function axisOf(curves, domain, { isLog, least }) {
  const isDrawn = isLog ? (value) => value >= 0 && value < Infinity : Number.isFinite; // a zero runs along the bottom
  const counts = isLog ? (value) => value > 0 && value < Infinity : Number.isFinite;
  const unit = isLog ? Math.log10 : (value) => value;
  const found = curves.map((curve) => shownValues(curve, domain, counts)).filter((sorted) => sorted.length);
  let low = found.length ? Math.min(...found.map((sorted) => unit(quantileOf(sorted, 0.002)))) : isLog ? -1 : 0;
  let high = found.length ? Math.max(...found.map((sorted) => unit(sorted[sorted.length - 1]))) : 1;
  const spare = Math.max(0, least - (high - low)) / 2 + 0.06 * (high - low);
  low -= spare;
  high += spare;
  return {
    isDrawn,
    place: (value) => Math.max(0, (unit(value) - low) / (high - low)), // what is lower runs along the bottom, seen
    ticks: isLog ? logTicks(low, high, 4) : linearTicks(low, high),
  };
}

function shownValues({ steps, get }, domain, isDrawn) {
  return sample(steps.length, (j) => {
    const value = steps[j] >= domain[0] && steps[j] <= domain[1] ? get(j) : NaN;
    return isDrawn(value) ? value : NaN;
  }, 3000);
}

function drawCurves(context, rect, view, palette, curves, axis) {
  const toY = (value) => rect.y + rect.height - 3 - axis.place(value) * (rect.height - HEAD - 5);
  context.save();
  context.font = FONT;
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.strokeStyle = palette.faint;
  context.fillStyle = palette.soft;
  for (const { value, text } of axis.ticks) {
    const y = Math.round(toY(value)) + 0.5;
    line(context, rect.x, y, rect.x + rect.width, y);
    context.fillText(text, rect.x - 7, y);
  }
  context.beginPath();
  context.rect(rect.x, rect.y, rect.width, rect.height);
  context.clip();
  for (const curve of curves.toReversed()) drawCurve(context, rect, view.domain, curve, axis, toY, palette);
  context.restore();
  drawKey(context, rect, curves, palette);
}

/** A line through neighbours, a dot where a point has none, a mark at the top where the value is NaN or infinite. */
function drawCurve(context, rect, domain, curve, axis, toY, palette) {
  const { steps, get } = curve;
  const isAt = (j) => j >= 0 && j < steps.length && axis.isDrawn(get(j));
  context.strokeStyle = context.fillStyle = palette[curve.colour];
  context.lineWidth = curve.colour === "line" ? 1.6 : 1.3;
  context.setLineDash(curve.dash);
  context.beginPath();
  const lost = [];
  const alone = [];
  for (let j = 0; j < steps.length; j++) {
    const value = get(j);
    const x = columnToX(rect, domain, steps, j);
    if (!axis.isDrawn(value)) {
      if (Number.isNaN(value) || value === Infinity) lost.push(x);
      continue;
    }
    const y = toY(value);
    if (isAt(j - 1)) context.lineTo(x, y);
    else context.moveTo(x, y);
    if (!isAt(j - 1) && !isAt(j + 1)) alone.push([x, y]);
  }
  context.stroke();
  context.setLineDash([]);
  for (const [x, y] of alone) dot(context, x, y);
  if (curve.colour !== "line") return;
  context.fillStyle = palette.bad;
  for (const x of lost) context.fillRect(x - 1, rect.y + HEAD - 2, 2, 6);
}

function dot(context, x, y) {
  context.beginPath();
  context.arc(x, y, 2.4, 0, 7);
  context.fill();
}

function drawKey(context, rect, curves, palette) {
  let x = rect.width < NARROW ? 2 : rect.x + 2; // over the ticks, too, where every pixel is needed
  context.textBaseline = "alphabetic";
  context.textAlign = "left";
  curves.forEach((curve, i) => {
    const room = rect.x + rect.width - x - (i ? 28 : 8);
    if (room < 40) return;
    context.font = i === 0 ? BOLD : FONT;
    const label = fitText(context, curve.label, room);
    const width = context.measureText(label).width;
    context.fillStyle = palette.paper;
    context.globalAlpha = 0.8;
    context.fillRect(x - 2, rect.y, width + (i ? 28 : 8), 15);
    context.globalAlpha = 1;
    if (i > 0) {
      context.strokeStyle = palette[curve.colour];
      context.lineWidth = 1.6;
      context.setLineDash(curve.dash);
      line(context, x, rect.y + 7, x + 18, rect.y + 7);
      context.setLineDash([]);
      x += 23;
    }
    context.fillStyle = i === 0 ? palette.ink : palette.soft;
    context.fillText(label, x, rect.y + 11);
    x += width + 18;
  });
  context.lineWidth = 1;
}

export function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}
