/** Paints layers × steps, pixel by pixel. Where several cells share a pixel the worst one shows. */

import { MARK_NO_GRADIENT, MARK_NONFINITE, MARK_NOT_MEASURED, MARK_ZERO, packed } from "./palette.js";
import { fullDomain } from "./geometry.js";

/**
 * @param {CanvasRenderingContext2D} context
 * @param {import("./types.js").Rect} rect CSS pixels.
 * @param {import("./types.js").View} view
 * @param {{cells: import("./types.js").Cells, frame: import("./types.js").Frame}} shown Of this run, or of the compared one.
 * @param {Object} palette
 * @param {number} ratio Device pixels per CSS pixel.
 */
export function drawHeatmap(context, rect, view, { cells, frame }, palette, ratio) {
  const width = Math.max(1, Math.round(rect.width * ratio));
  const height = Math.max(1, Math.round(rect.height * ratio));
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const paint = painter(pixels, width, cells.scale, palette, ratio);
  const columns = columnsOfPixels(frame.steps, view.domain, width);
  const rowCount = view.span[1] - view.span[0];
  const index = new Uint16Array(width);
  const weight = new Float32Array(width);
  for (let y = 0; y < height; ) {
    const first = Math.floor((y / height) * rowCount);
    const last = Math.max(first + 1, Math.floor(((y + 1) / height) * rowCount));
    weight.fill(-Infinity);
    index.fill(MARK_NOT_MEASURED);
    for (let row = first; row < last; row++) {
      worst(cells, view.visible[view.span[0] + row], frame.steps.length, columns, index, weight);
    }
    widen(index, weight, Math.round(ratio));
    let end = y + 1;
    while (end < height && rowCount < height && Math.floor((end / height) * rowCount) === first) end++;
    paint(index, y, end);
    y = end;
  }
  if (rowCount * 7 < rect.height) separate(pixels, width, height, view, packed(palette.paper));
  context.putImageData(image, Math.round(rect.x * ratio), Math.round(rect.y * ratio));
}

/** For each pixel the first and one past the last column that it shows. */
export function columnsOfPixels(steps, domain, width) {
  const first = new Int32Array(width);
  const end = new Int32Array(width);
  const scale = (domain[1] - domain[0]) / width;
  const start = fullDomain(steps)[0];
  let column = 0;
  for (let x = 0; x < width; x++) {
    const from = domain[0] + x * scale;
    const to = from + scale;
    if (from >= steps[steps.length - 1] || to <= start) continue; // where this run has no steps it stays empty
    while (column < steps.length - 1 && steps[column] <= from) column++;
    let stop = column + 1;
    while (stop < steps.length && steps[stop - 1] < to) stop++;
    first[x] = column;
    end[x] = stop;
  }
  return { first, end };
}

function worst(cells, row, columnCount, columns, index, weight) {
  const base = row * columnCount;
  for (let x = 0; x < index.length; x++) {
    for (let i = base + columns.first[x]; i < base + columns.end[x]; i++) {
      if (cells.weight[i] > weight[x]) {
        weight[x] = cells.weight[i];
        index[x] = cells.index[i];
      }
    }
  }
}

/** A non-finite column is at least three pixels wide: one would be lost on the way to the eye. */
function widen(index, weight, by) {
  for (let x = index.length - 1; x >= 0; x--) {
    if (index[x] !== MARK_NONFINITE || weight[x] < 1e6) continue;
    for (let d = -by; d <= by; d++) {
      if (x + d >= 0 && x + d < index.length) index[x + d] = MARK_NONFINITE;
    }
  }
}

function painter(pixels, width, scale, palette, ratio) {
  const ramp = scale.ramp === "sequential" ? palette.sequentialRamp : palette.divergingRamp;
  const nonfinite = packed(palette.nonfinite);
  const [zero, zeroDot] = palette.zero.map(packed);
  const [paper, hatch] = palette.hatch.map(packed);
  const period = Math.max(2, Math.round(6 * ratio));
  const patterned = (mark, x, y) => {
    if (mark === MARK_ZERO) return x % 4 < 2 && y % 4 < 2 ? zeroDot : zero;
    if (mark === MARK_NO_GRADIENT) return (x + y) % period < period / 3 ? hatch : paper;
    return paper;
  };
  return (index, from, to) => {
    let plain = true;
    for (let x = 0; x < width; x++) {
      const mark = index[x];
      plain &&= mark < MARK_ZERO || mark === MARK_NOT_MEASURED;
      pixels[from * width + x] = mark < 256 ? ramp[mark] : mark === MARK_NONFINITE ? nonfinite : patterned(mark, x, from);
    }
    for (let y = from + 1; y < to; y++) {
      pixels.copyWithin(y * width, from * width, (from + 1) * width);
      if (plain) continue;
      for (let x = 0; x < width; x++) {
        if (index[x] >= MARK_ZERO) pixels[y * width + x] = patterned(index[x], x, y);
      }
    }
  };
}

/** A thin line where one block ends and the next begins. */
function separate(pixels, width, height, view, colour) {
  const rowCount = view.span[1] - view.span[0];
  for (let row = 1; row < rowCount; row++) {
    const above = view.rows.blocks[view.visible[view.span[0] + row - 1]];
    const below = view.rows.blocks[view.visible[view.span[0] + row]];
    if (above === below) continue;
    const y = Math.round((row / rowCount) * height);
    pixels.fill(colour, y * width, (y + 1) * width);
  }
}
