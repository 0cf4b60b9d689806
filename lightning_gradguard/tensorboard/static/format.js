/** Numbers as people read them. */

const SUPERSCRIPT = { "-": "⁻", ".": "·", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

/** @param {number} step @returns {string} "12,340" */
export function formatStep(step) {
  return (Math.round(step) || 0).toLocaleString("en-US");
}

/** @param {number} value @returns {string} Three digits, with a power of ten where that is shorter: "0.0123", "4.1e-9". */
export function formatNumber(value) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return String(Number(value.toPrecision(3)));
  return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
}

/** @param {number} exponent @returns {string} "10⁻³", for axes. */
export function formatPower(exponent) {
  if (exponent === 0) return "1";
  const digits = String(Math.round(exponent * 10) / 10);
  return "10" + [...digits].map((digit) => SUPERSCRIPT[digit]).join("");
}

/** @param {number} factor @returns {string} "×38", "×9.4e13", "÷20" */
export function formatFactor(factor) {
  return factor >= 1 ? `×${formatNumber(factor)}` : `÷${formatNumber(1 / factor)}`;
}

/** @param {number} share @returns {string} "12 %", "0.3 %", "0 %" */
export function formatShare(share) {
  const percent = share * 100;
  const digits = percent > 0 && percent < 1 ? 1 : 0;
  return `${percent.toFixed(digits)} %`;
}

/** @param {number} seconds @returns {string} "8 s", "12 min", "3 h" */
export function formatAge(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** @param {number} count @param {string} noun @returns {string} "1 layer", "26 layers" */
export function plural(count, noun) {
  return `${formatStep(count)} ${noun}${count === 1 ? "" : "s"}`;
}
