/** A curve over steps above the picture: the total norm and its threshold, or the row that is looked at. */

import { powerTicks } from "./axes.js";
import { STATS } from "./cells.js";
import { BOLD, columnToX, FONT } from "./geometry.js";
import { quantileOf, sample } from "./statistics.js";

/**
 * @param {CanvasRenderingContext2D} context
 * @param {import("./types.js").Rect} rect
 * @param {Object} view
 * @param {Object} palette
 * @param {{row: number}|null} focus Row to show instead of the total, or null.
 */
export function drawStrip(context, rect, view, palette, focus) {
  const curves = focus ? rowCurves(view, focus.row) : totalCurves(view);
  const [low, high] = rangeOf(curves, view.domain);
  const toY = (log) => rect.y + rect.height - 4 - ((log - low) / (high - low)) * (rect.height - 22);
  context.save();
  context.font = FONT;
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.strokeStyle = palette.faint;
  context.fillStyle = palette.soft;
  for (const { power, text } of powerTicks(low, high, 3)) {
    const y = Math.round(toY(power)) + 0.5;
    line(context, rect.x, y, rect.x + rect.width, y);
    context.fillText(text, rect.x - 7, y);
  }
  context.beginPath();
  context.rect(rect.x, rect.y, rect.width, rect.height);
  context.clip();
  for (const curve of curves) drawCurve(context, rect, view.domain, curve, toY, palette);
  drawKey(context, rect, curves, palette);
  context.restore();
}

function totalCurves(view) {
  const { steps, step } = view.frame;
  const curves = [{ label: "Total gradient norm", steps, get: (j) => step.total_norm[j], colour: "line", dash: [] }];
  if (step.threshold.some((value) => value > 0)) {
    curves.push({ label: "clip threshold", steps, get: (j) => step.threshold[j], colour: "clip", dash: [5, 4] });
  }
  if (view.compare) {
    const other = view.compare.frame;
    curves.push({
      label: view.compare.name, steps: other.steps, get: (j) => other.step.total_norm[j], colour: "other", dash: [2, 3],
    });
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
    const start = other * frame.steps.length;
    curves.push({ label: name, steps: frame.steps, get: (j) => values[start + j], colour: "other", dash: [2, 3] });
  }
  return curves;
}

/** Logarithms from the lowest to the highest, without the lowest and highest few of long runs, at least a decade apart. */
function rangeOf(curves, domain) {
  const found = curves.map(({ steps, get }) =>
    sample(steps.length, (j) => {
      const value = steps[j] >= domain[0] && steps[j] <= domain[1] ? get(j) : NaN;
      return value > 0 && value < Infinity ? Math.log10(value) : NaN;
    }, 3000),
  ).filter((sorted) => sorted.length);
  if (!found.length) return [-1, 1];
  const low = Math.min(...found.map((sorted) => quantileOf(sorted, 0.002)));
  const high = Math.max(...found.map((sorted) => sorted[sorted.length - 1]));
  const spare = Math.max(0, 1.2 - (high - low)) / 2;
  return [low - spare - 0.08, high + spare + 0.08];
}

function drawCurve(context, rect, domain, curve, toY, palette) {
  const { steps, get } = curve;
  context.strokeStyle = palette[curve.colour];
  context.lineWidth = curve.colour === "line" ? 1.4 : 1.2;
  context.setLineDash(curve.dash);
  context.beginPath();
  let down = false;
  for (let j = 0; j < steps.length; j++) {
    const value = get(j);
    if (!(value > 0) || value === Infinity) {
      down = false;
      continue;
    }
    const x = columnToX(rect, domain, steps, j);
    const y = toY(Math.log10(value));
    if (down) context.lineTo(x, y);
    else context.moveTo(x, y);
    down = true;
  }
  context.stroke();
  context.setLineDash([]);
}

function drawKey(context, rect, curves, palette) {
  let x = rect.x + 2;
  context.textBaseline = "alphabetic";
  context.textAlign = "left";
  curves.forEach((curve, i) => {
    context.font = i === 0 ? BOLD : FONT;
    const width = context.measureText(curve.label).width;
    context.fillStyle = palette.paper;
    context.globalAlpha = 0.8;
    context.fillRect(x - 2, rect.y, width + (i ? 28 : 8), 15);
    context.globalAlpha = 1;
    if (i > 0) {
      context.strokeStyle = palette[curve.colour];
      context.setLineDash(curve.dash);
      line(context, x, rect.y + 7, x + 18, rect.y + 7);
      context.setLineDash([]);
      x += 23;
    }
    context.fillStyle = i === 0 ? palette.ink : palette.soft;
    context.fillText(curve.label, x, rect.y + 11);
    x += width + 18;
  });
}

export function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}
