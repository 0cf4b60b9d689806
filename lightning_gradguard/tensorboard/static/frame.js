/** Decodes what the server packs in frame.py. */

/**
 * @param {ArrayBuffer} buffer
 * @returns {import("./types.js").Frame}
 */
export function decodeFrame(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const columns = header.columns;
  const names = header.step_stats;
  let offset = 4 + length;
  const take = (Type, count) => {
    const array = new Type(buffer, offset, count);
    offset += count * Type.BYTES_PER_ELEMENT;
    return array;
  };
  const steps = take(Float64Array, columns);
  const wallTimes = take(Float64Array, columns);
  const byColumn = take(Float32Array, columns * names.length);
  const values = take(Float32Array, columns * header.layers.length);
  /** @type {Object<string, Float32Array>} */
  const step = {};
  names.forEach((name, k) => {
    step[name] = Float32Array.from({ length: columns }, (_, j) => byColumn[j * names.length + k]);
  });
  return {
    stat: header.stat,
    layers: header.layers,
    shapes: header.shapes,
    kinds: header.kinds,
    measured: header.measured,
    clipRatio: header.clip_ratio,
    dryRun: Boolean(header.dry_run),
    steps,
    wallTimes,
    step,
    values,
  };
}

/**
 * Index of the column that shows a step: the one that folds it, else the nearest.
 * @param {Float64Array} steps
 * @param {number} step
 */
export function columnAt(steps, step) {
  let low = 0;
  let high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low;
}
