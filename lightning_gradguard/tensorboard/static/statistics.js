/** Order statistics that leave out what is not a number. */

/**
 * Up to `limit` values, evenly spread, without NaN, sorted.
 * @param {number} count
 * @param {function(number): number} get
 * @param {number} limit
 * @returns {Float32Array}
 */
export function sample(count, get, limit) {
  const stride = Math.max(1, count / limit);
  const kept = [];
  for (let i = 0; i < count; i += stride) {
    const value = get(Math.floor(i));
    if (!Number.isNaN(value)) kept.push(value);
  }
  return Float32Array.from(kept).sort();
}

/** @param {Float32Array} sorted @param {number} share @returns {number} NaN if empty. */
export function quantileOf(sorted, share) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : NaN;
}

/** @param {Float32Array} sorted */
export function medianOf(sorted) {
  return quantileOf(sorted, 0.5);
}

/**
 * Least-squares slope of y over 0, 1, 2 …, where y is a number.
 * @param {ArrayLike<number>} values
 */
export function slopeOf(values) {
  let n = 0;
  let sumX = 0;
  let sumY = 0;
  let sumXX = 0;
  let sumXY = 0;
  for (let x = 0; x < values.length; x++) {
    const y = values[x];
    if (!Number.isFinite(y)) continue;
    n++;
    sumX += x;
    sumY += y;
    sumXX += x * x;
    sumXY += x * y;
  }
  const spread = n * sumXX - sumX * sumX;
  return spread > 0 ? (n * sumXY - sumX * sumY) / spread : NaN;
}
