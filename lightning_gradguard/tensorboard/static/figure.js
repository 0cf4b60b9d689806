/** The whole figure: what stays, on one canvas; what follows the pointer, on another above it. */

import { drawRowLabels, drawStepAxis, fitEnd, fitText } from "./axes.js";
import { BOLD, columnToX, FONT, fullDomain, rowToY, stepToX } from "./geometry.js";
import { drawHeatmap } from "./heatmap.js";
import { drawLanes } from "./lanes.js";
import { drawLegend } from "./legend.js";
import { drawHeading, drawProfileBase, drawProfileStep } from "./profile.js";
import { drawLoss, drawStrip, line } from "./strip.js";

/** All that does not move with the pointer. */
export function drawBase(context, places, view, palette, ratio) {
  context.fillStyle = palette.paper;
  context.fillRect(0, 0, places.width, places.height);
  drawLegend(context, places.legend, view, palette);
  drawLanes(context, places.lanes, view, palette);
  if (places.loss.height) drawLoss(context, places.loss, view, palette);
  drawMap(context, places.map, view, view, palette, ratio, places.kindWidth);
  if (places.second.height) drawSecond(context, places, view, palette, ratio);
  drawStepAxis(context, places.axis, view, palette);
  if (places.profile.width) drawProfileBase(context, places.profile, view, palette);
}

function drawMap(context, rect, view, shown, palette, ratio, kindWidth) {
  drawRowLabels(context, rect, view, palette, kindWidth);
  drawHeatmap(context, rect, view, shown, palette, ratio);
  context.strokeStyle = palette.faint;
  context.strokeRect(rect.x - 0.5, rect.y - 0.5, rect.width + 1, rect.height + 1);
}

/** The compared run: the same rows, steps and colours, so that what differs is the run. */
function drawSecond(context, places, view, palette, ratio) {
  const { map, second } = places;
  const { compare } = view;
  const nameOf = (row) => compare.nameOf(compare.rowOf(view.visible[row])) ?? "";
  const labelled = compare.isByName ? view : { ...view, nameOf, kindOf: () => "", blockOf: nameOf };
  drawMap(context, second, labelled, compare, palette, ratio, places.kindWidth);
  context.font = BOLD;
  context.fillStyle = palette.other;
  context.textAlign = "left";
  context.textBaseline = "middle";
  const how = compare.isByName ? "the same rows, steps and colours" : "rows by relative depth, the same steps and colours";
  const text = `${compare.name}: ${how}`;
  context.fillText(fitEnd(context, text, second.width), second.x, (map.y + map.height + second.y) / 2 + 1);
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
    drawHeading(context, places.heading, view, palette, cursor.column, cursor.isPinned, places.profile.height);
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
    const [left, right] = frameOf(map, view, cursor.column, x);
    for (const rect of [map, places.second]) if (rect.height) context.strokeRect(left, rect.y - 1, right - left, rect.height + 2);
    for (const rect of [strip, places.loss]) if (rect.height) line(context, x, rect.y + 16, x, rect.y + rect.height);
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

/** Left and right of the frame around a column: at least five pixels, and inside the picture even at its ends. */
function frameOf(map, view, column, x) {
  const { steps } = view.frame;
  const from = stepToX(map, view.domain, column ? steps[column - 1] : fullDomain(steps)[0]);
  const half = Math.max(2.5, (stepToX(map, view.domain, steps[column]) - from) / 2 + 1);
  return [Math.max(map.x - 1, x - half), Math.min(map.x + map.width + 1, x + half)];
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
