/** Marks over the picture: what happened when. Shape and colour both tell the kind. */

import { columnAt } from "./frame.js";
import { columnToX, FONT, LANE, stepToX } from "./geometry.js";

/** One lane each, `kinds` being those of its events, or `draw` what it shows; what cannot happen in a run has no lane. */
export function lanesOf(view) {
  const lanes = [
    { label: "non-finite", kinds: ["nonfinite", "overflow", "rollback"] },
    { label: "spike", kinds: ["spike"] },
  ];
  if (view.marks.some((mark) => mark.kind === "finding")) lanes.push({ label: "finding", kinds: ["finding", "cleared"] });
  if (view.frame.step.coefficient.some((value) => value >= 0)) lanes.push({ label: "clipped", kinds: [], draw: drawClipDensity });
  if (view.curve?.marks) lanes.push({ label: "would clip", kinds: [], draw: drawWouldClip });
  if (view.frame.step.early?.some((value) => value > 0)) lanes.push({ label: "early", kinds: [], draw: drawEarly });
  return lanes;
}

export const SIGNS = {
  nonfinite: { sign: "✕", name: "non-finite", colour: "bad" },
  overflow: { sign: "▽", name: "overflow, left to the loss scaler", colour: "soft" },
  rollback: { sign: "↩", name: "rolled back", colour: "bad" },
  spike: { sign: "◆", name: "spike", colour: "spike" },
  finding: { sign: "▲", name: "finding", colour: "warn" },
  cleared: { sign: "△", name: "finding cleared", colour: "ok" },
};

export function drawLanes(context, rect, view, palette) {
  lanesOf(view).forEach((lane, i) => {
    const y = rect.y + i * LANE;
    context.font = FONT;
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillStyle = palette.soft;
    context.fillText(lane.label, rect.x - 7, y + LANE / 2);
    context.fillStyle = palette.faint;
    context.globalAlpha = 0.55;
    context.fillRect(rect.x, y + 1, rect.width, LANE - 2);
    context.globalAlpha = 1;
    const draw = lane.draw || drawMarks;
    draw(context, rect, y, view, palette, lane.kinds);
  });
}

function drawMarks(context, rect, y, view, palette, kinds) {
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = "bold 12px system-ui, sans-serif";
  for (const event of view.marks) {
    if (!kinds.includes(event.kind) || event.step < view.domain[0] || event.step > view.domain[1]) continue;
    const { sign, colour } = SIGNS[event.kind];
    context.fillStyle = palette[colour];
    context.fillText(sign, markX(rect, view, event), y + LANE / 2 + 0.5);
  }
}

/** A tick at each step that the tried policy would have clipped. */
function drawWouldClip(context, rect, y, view, palette) {
  context.fillStyle = palette.clip;
  for (const step of view.curve.marks) {
    if (step < view.domain[0] || step > view.domain[1]) continue;
    context.fillRect(stepToX(rect, view.domain, step) - 1, y + 3, 2, LANE - 6);
  }
}

/** A tick for each column that was sampled before the first regular one. */
function drawEarly(context, rect, y, view, palette) {
  const { steps, step } = view.frame;
  context.fillStyle = palette.line;
  step.early.forEach((isEarly, j) => {
    if (!(isEarly > 0) || steps[j] < view.domain[0] || steps[j] > view.domain[1]) return;
    context.fillRect(columnToX(rect, view.domain, steps, j) - 0.75, y + 3, 1.5, LANE - 6);
  });
}

/** Height of a bar is the share of steps that were clipped; the largest of a pixel shows. */
function drawClipDensity(context, rect, y, view, palette) {
  const { num_clipped: clipped, num_steps: all } = view.frame.step;
  const steps = view.frame.steps;
  context.fillStyle = palette.clip;
  for (let j = 0; j < steps.length; j++) {
    if (!(clipped[j] > 0) || steps[j] < view.domain[0] || (j && steps[j - 1] > view.domain[1])) continue;
    const from = Math.round(Math.max(rect.x, stepToX(rect, view.domain, j ? steps[j - 1] : view.domain[0])));
    const to = Math.round(Math.min(rect.x + rect.width, stepToX(rect, view.domain, steps[j])));
    const height = Math.max(2, (LANE - 3) * Math.min(1, clipped[j] / Math.max(1, all[j])));
    context.fillRect(from, y + LANE - 1.5 - height, Math.max(1, to - from), height);
  }
}

function markX(rect, view, event) {
  return columnToX(rect, view.domain, view.frame.steps, columnAt(view.frame.steps, event.step));
}

/** The event whose mark is under the pointer, if any. */
export function eventAt(rect, view, x, y) {
  const lane = lanesOf(view)[Math.floor((y - rect.y) / LANE)];
  if (!lane) return null;
  let best = null;
  let nearest = 7;
  for (const event of view.marks) {
    const distance = Math.abs(markX(rect, view, event) - x);
    if (lane.kinds.includes(event.kind) && distance < nearest) {
      best = event;
      nearest = distance;
    }
  }
  return best;
}
