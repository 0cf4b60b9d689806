/** Takes the picture out of the browser. */

import { el } from "./dom.js";
import { drawBase, drawMoving } from "./figure.js";
import { NOT_MEASURED } from "./held.js";
import { inWords } from "./tooltip.js";

/** The figure with the pinned step on one canvas, at twice the screen's resolution. */
export function figureCanvas(places, view, palette, cursor, title) {
  const ratio = 2;
  const head = 26;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(places.width * ratio);
  canvas.height = Math.round((places.height + head) * ratio);
  const context = canvas.getContext("2d");
  const layer = document.createElement("canvas");
  layer.width = canvas.width;
  layer.height = Math.round(places.height * ratio);
  const layerContext = layer.getContext("2d");
  layerContext.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawBase(layerContext, places, view, palette, ratio);
  drawMoving(layerContext, places, view, palette, cursor);
  context.fillStyle = palette.paper;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(layer, 0, head * ratio);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = palette.ink;
  context.font = "600 14px Roboto, system-ui, sans-serif";
  context.textBaseline = "middle";
  context.fillText(title, 8, head / 2);
  return canvas;
}

/**
 * The shown values as a table: a line per row, a column per step. What is no number is written out.
 * @param {Object} view
 */
export function toCsv(view) {
  const { steps } = view.frame;
  const shown = [...steps.keys()].filter((j) => steps[j] >= view.domain[0] && steps[j] <= view.domain[1]);
  const quote = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = [["layer", ...shown.map((j) => steps[j])].join(",")];
  for (let row = view.span[0]; row < view.span[1]; row++) {
    const base = view.visible[row] * steps.length;
    const values = shown.map((j) => {
      const value = view.held.source[j] === j ? view.values[base + j] : NOT_MEASURED;
      return value >= 0 && value < Infinity ? Number(value.toPrecision(7)) : inWords(value);
    });
    lines.push([quote(view.nameOf(row)), ...values].join(","));
  }
  return lines.join("\n") + "\n";
}

/** @param {Blob} blob @param {string} name */
export function download(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
