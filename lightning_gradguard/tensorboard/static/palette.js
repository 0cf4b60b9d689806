/** Colours. The ramp diverges from a quiet middle to blue (less) and orange (more), which every eye tells apart. */

export const MARK_NONFINITE = 256;
export const MARK_ZERO = 257;
export const MARK_NO_GRADIENT = 258;
export const MARK_NOT_MEASURED = 259;

const LIGHT = {
  diverging: ["#0f4c94", "#2f7fc1", "#7db7dc", "#c5dfee", "#f5f3ef", "#fbd6ab", "#f2a254", "#d26c10", "#8f3f04"],
  sequential: ["#f5f3ef", "#dcd6ea", "#b3a7d3", "#8a70b8", "#663f9b", "#3f1570"],
  nonfinite: "#000000",
  zero: ["#8d9399", "#73797f"],
  hatch: ["#ffffff", "#b3b9c1"],
  paper: "#ffffff",
  ink: "#1d2530",
  soft: "#5b6673",
  faint: "#dfe3e8",
  line: "#1668b8",
  other: "#c05600",
  accent: "#7a1fa2",
  band: "rgba(22, 104, 184, 0.14)",
  bad: "#c5162e",
  spike: "#7a1fa2",
  warn: "#b45309",
  clip: "#00756a",
  ratio: "#8a6d00",
  ok: "#2e7d4f",
};

const DARK = {
  diverging: ["#a5d8ff", "#5fb0f0", "#2f7cc0", "#24517d", "#23272e", "#754413", "#bb6a15", "#f09a3e", "#ffd09a"],
  sequential: ["#23272e", "#41355f", "#64509a", "#8e77cc", "#b9a6ec", "#e6dcff"],
  nonfinite: "#ffffff",
  zero: ["#6f767e", "#8b929a"],
  hatch: ["#1b1e24", "#4a515b"],
  paper: "#1b1e24",
  ink: "#e8ebef",
  soft: "#a3acb8",
  faint: "#343a43",
  line: "#6cb6ff",
  other: "#ffab57",
  accent: "#d7a1f5",
  band: "rgba(108, 182, 255, 0.18)",
  bad: "#ff6b7d",
  spike: "#d7a1f5",
  warn: "#ffb84d",
  clip: "#4fd1c1",
  ratio: "#d9c25a",
  ok: "#6fcf97",
};

/**
 * @param {boolean} dark
 * @returns {typeof LIGHT & {divergingRamp: Uint32Array, sequentialRamp: Uint32Array}}
 */
export function paletteOf(dark) {
  const theme = dark ? DARK : LIGHT;
  return { ...theme, divergingRamp: ramp(theme.diverging), sequentialRamp: ramp(theme.sequential) };
}

/** A colour as canvas image data holds it. @param {string} hex */
export function packed(hex) {
  const [red, green, blue] = channels(hex);
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** 256 colours between evenly spaced stops. */
function ramp(stops) {
  const colours = stops.map(channels);
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (colours.length - 1);
    const left = Math.min(Math.floor(place), colours.length - 2);
    const share = place - left;
    const [red, green, blue] = colours[left].map((c, k) => Math.round(c + (colours[left + 1][k] - c) * share));
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
}
