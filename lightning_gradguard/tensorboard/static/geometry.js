/** Where everything lies in the figure, and the way from steps and rows to pixels and back. */

export const FONT = "11px Roboto, system-ui, sans-serif";
export const BOLD = "600 12px Roboto, system-ui, sans-serif";
export const LANE = 15;
export const LINE = 13;

const STRIP = 88;
const AXIS = 34;
const GAP = 6;
const CAPTION = 20;
const LEAST = 240;
const LEGEND = { wide: 48, narrow: 122 };
/** From this width on the profile has room beside the picture, the legend in one line, and kinds beside names. */
const WIDE = 900;
const MIDDLE = 720;

/**
 * @param {Object} size
 * @param {number} size.width CSS pixels.
 * @param {number} size.room Height of the window below the top of the figure.
 * @param {number} size.rows Rows to show.
 * @param {{name: number, kind: number}} size.label Width of the longest label.
 * @param {number} size.lanes
 * @param {boolean} size.hasLoss
 * @param {boolean} size.isDouble Whether the compared run has a picture of its own.
 * @returns {Object<string, import("./types.js").Rect> & {width: number, height: number, kindWidth: number}}
 */
export function arrange({ width, room, rows, label, lanes, hasLoss, isDouble }) {
  const legend = width < WIDE ? LEGEND.narrow : LEGEND.wide;
  const stripTop = legend + GAP;
  const lossTop = stripTop + STRIP + GAP;
  const laneTop = lossTop + (hasLoss ? STRIP + GAP : 0);
  const mapTop = laneTop + lanes * LANE + 7;
  const wanted = Math.max(LEAST, room - mapTop - AXIS);
  const share = isDouble ? Math.max(LEAST, (wanted - CAPTION) / 2) : wanted;
  const mapHeight = Math.round(Math.max(rows < 8 ? 110 : 150, Math.min(rows * 22, share)));
  const hasKinds = width >= MIDDLE && hasRoomForEach(mapHeight, rows);
  const kindWidth = hasKinds ? label.kind : 0;
  const gutter = Math.max(84, Math.min(label.name + (kindWidth ? kindWidth + 8 : 0) + 14, width * 0.3, 340));
  const profileWidth = width < MIDDLE ? 0 : Math.max(210, Math.min(width * 0.22, 340));
  const inner = width - gutter - (profileWidth ? profileWidth + 26 : 8);
  const secondTop = mapTop + mapHeight + CAPTION;
  const axisTop = isDouble ? secondTop + mapHeight : mapTop + mapHeight;
  const across = (y, height) => ({ x: gutter, y, width: inner, height });
  return {
    width,
    height: axisTop + AXIS,
    kindWidth,
    legend: { x: 0, y: 0, width, height: legend },
    strip: across(stripTop, STRIP),
    loss: across(lossTop, hasLoss ? STRIP : 0),
    lanes: across(laneTop, lanes * LANE),
    map: across(mapTop, mapHeight),
    second: across(secondTop, isDouble ? mapHeight : 0),
    axis: across(axisTop, AXIS),
    profile: { x: width - profileWidth, y: mapTop, width: profileWidth, height: mapHeight },
    heading: { x: width - profileWidth, y: stripTop, width: profileWidth, height: mapTop - stripTop },
  };
}

/** Whether rows are high enough for a label each; else blocks are named, and no kinds. */
export function hasRoomForEach(height, rows) {
  return height / rows >= LINE - 1;
}

/** First and last step that the columns cover; each column covers the steps since the one before. */
export function fullDomain(steps) {
  const last = steps[steps.length - 1];
  const first = steps[0];
  const stride = steps.length > 1 ? (last - first) / (steps.length - 1) : 1;
  return [first - stride, last];
}

/** @param {import("./types.js").Rect} rect @param {[number, number]} domain */
export function stepToX(rect, domain, step) {
  return rect.x + ((step - domain[0]) / (domain[1] - domain[0])) * rect.width;
}

/** Middle of a column, where its marks and the points of curves are. */
export function columnToX(rect, domain, steps, column) {
  const from = column > 0 ? steps[column - 1] : fullDomain(steps)[0];
  return stepToX(rect, domain, (from + steps[column]) / 2);
}

export function xToStep(rect, domain, x) {
  return domain[0] + ((x - rect.x) / rect.width) * (domain[1] - domain[0]);
}

/** Vertical middle of a row; rows are counted among the visible ones. */
export function rowToY(rect, span, row) {
  return rect.y + ((row + 0.5 - span[0]) / (span[1] - span[0])) * rect.height;
}

export function yToRow(rect, span, y) {
  const row = Math.floor(span[0] + ((y - rect.y) / rect.height) * (span[1] - span[0]));
  return Math.max(span[0], Math.min(span[1] - 1, row));
}

export function contains(rect, x, y) {
  return x >= rect.x && x < rect.x + rect.width && y >= rect.y && y < rect.y + rect.height;
}
