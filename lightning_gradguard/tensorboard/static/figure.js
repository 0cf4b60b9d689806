/** The whole figure: what stays, on one canvas; what follows the pointer, on another above it. */

import { drawRowLabels, drawStepAxis, fitText } from "./axes.js";
import { columnToX, FONT, fullDomain, rowToY, stepToX } from "./geometry.js";
import { drawHeatmap } from "./heatmap.js";
import { drawLanes } from "./lanes.js";
import { drawLegend } from "./legend.js";
import { drawHeading, drawProfileBase, drawProfileStep } from "./profile.js";
import { drawStrip, line } from "./strip.js";

/** All that does not move with the pointer. */
export function drawBase(context, places, view, palette, ratio) {
  context.fillStyle = palette.paper;
  context.fillRect(0, 0, places.width, places.height);
  drawLegend(context, places.legend, view, palette);
  drawLanes(context, places.lanes, view, palette);
  drawRowLabels(context, places.map, view, palette);
  drawHeatmap(context, places.map, view, palette, ratio);
  context.strokeStyle = palette.faint;
  context.strokeRect(places.map.x - 0.5, places.map.y - 0.5, places.map.width + 1, places.map.height + 1);
  drawStepAxis(context, places.axis, view, palette);
  if (places.profile.width) drawProfileBase(context, places.profile, view, palette);
}

/**
 * What follows the pointer or the pin.
 * @param {Object} cursor
 * @param {number} cursor.column
 * @param {number|null} cursor.row Among the visible rows.
 * @param {boolean} cursor.isPinned Whether it stays when the pointer leaves.
 * @param {boolean} cursor.isShown Whether a cross marks it.
 * @param {Object} cursor.pin The pin, with the same four.
 * @param {import("./types.js").Rect|null} cursor.selection Area that is being dragged.
 */
export function drawMoving(context, places, view, palette, cursor) {
  const focus = cursor.row === null ? null : { row: cursor.row };
  drawStrip(context, places.strip, view, palette, focus);
  if (places.profile.width) {
    drawHeading(context, places.heading, view, palette, cursor.column, cursor.isPinned);
    drawProfileStep(context, places.profile, view, palette, cursor.column);
  }
  if (cursor.pin.isShown) drawCross(context, places, view, palette, cursor.pin);
  if (cursor.isShown && !cursor.isPinned) drawCross(context, places, view, palette, cursor);
  if (cursor.selection) {
    const { x, y, width, height } = cursor.selection;
    context.fillStyle = palette.band;
    context.fillRect(x, y, width, height);
    context.strokeStyle = palette.line;
    context.strokeRect(x + 0.5, y + 0.5, width, height);
  }
}

/** A frame around the column and one around the row, so that the cells themselves stay to be seen. */
function drawCross(context, places, view, palette, cursor) {
  const { map, strip, profile } = places;
  const { steps } = view.frame;
  const x = columnToX(map, view.domain, steps, cursor.column);
  context.strokeStyle = context.fillStyle = palette.accent;
  context.lineWidth = cursor.isPinned ? 1.5 : 1;
  if (x >= map.x && x <= map.x + map.width) {
    const from = stepToX(map, view.domain, cursor.column ? steps[cursor.column - 1] : fullDomain(steps)[0]);
    const half = Math.max(2.5, (stepToX(map, view.domain, steps[cursor.column]) - from) / 2 + 1);
    context.strokeRect(x - half, map.y - 1, 2 * half, map.height + 2);
    line(context, x, strip.y + 16, x, strip.y + strip.height);
    pointer(context, x, map.y + map.height);
  }
  if (cursor.row !== null && cursor.row >= view.span[0] && cursor.row < view.span[1]) {
    const y = rowToY(map, view.span, cursor.row);
    const half = Math.max(2, map.height / (view.span[1] - view.span[0]) / 2);
    context.strokeRect(map.x - 1, y - half, map.width + 2, 2 * half);
    if (profile.width) context.strokeRect(profile.x, y - half, profile.width, 2 * half);
    drawFocusLabel(context, map, view, palette, cursor.row, y);
  }
  context.lineWidth = 1;
}

function pointer(context, x, y) {
  context.beginPath();
  context.moveTo(x, y + 1);
  context.lineTo(x - 5, y + 8);
  context.lineTo(x + 5, y + 8);
  context.fill();
}

function drawFocusLabel(context, map, view, palette, row, y) {
  context.font = FONT;
  const text = fitText(context, view.nameOf(row), map.x - 12);
  const width = context.measureText(text).width;
  context.fillStyle = palette.accent;
  context.fillRect(map.x - width - 12, y - 8, width + 9, 16);
  context.fillStyle = palette.paper;
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillText(text, map.x - 7, y);
}
