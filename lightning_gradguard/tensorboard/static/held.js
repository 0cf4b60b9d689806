/** Some statistics are not measured at every step: columns without one show the last that was measured, with its age. */

export const NO_GRADIENT = -1;
export const NOT_MEASURED = -2;

/**
 * Values with the columns filled that were not measured at all, and the column that each was measured at. A row that is
 * missing in a column that was measured stays missing: that layer was not there.
 * @param {Float32Array} values Row-major [rows × columns].
 * @param {number} columns
 * @returns {{values: Float32Array, source: Int32Array, share: number}} `share` is that of columns with a measurement.
 */
export function holdLast(values, columns) {
  const source = Int32Array.from({ length: columns }, (_, j) => j);
  if (!values.includes(NOT_MEASURED)) return { values, source, share: 1 };
  const rows = values.length / columns;
  const held = values.slice();
  let own = 0;
  for (let j = 0; j < columns; j++) {
    if (isMeasured(values, rows, columns, j)) own++;
    else if (j > 0) source[j] = source[j - 1];
    if (source[j] !== j) for (let row = 0; row < rows; row++) held[row * columns + j] = values[row * columns + source[j]];
  }
  return { values: held, source, share: own / columns };
}

function isMeasured(values, rows, columns, column) {
  for (let row = 0; row < rows; row++) if (values[row * columns + column] !== NOT_MEASURED) return true;
  return false;
}
