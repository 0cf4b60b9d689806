/** Rows of the picture: parameters, layers or blocks, and those among them that the filter lets through. */

import { NO_GRADIENT, NOT_MEASURED } from "./held.js";

const PARAMETER = /\.(weight|bias|gamma|beta|[a-z_]*(weight|bias)[a-z0-9_]*)$/;

/** Whether names end in parameters, as with `group_by="parameter"`. @param {string[]} layers */
export function isByParameter(layers) {
  return layers.filter((name) => PARAMETER.test(name)).length > layers.length / 2;
}

/** The layer of a parameter. @param {string} name */
export function layerOf(name) {
  return name.replace(PARAMETER, "");
}

/**
 * The block of a layer: up to the last number that has something below it, else the parent module.
 * "encoder.3.mlp.fc1" → "encoder.3", "head.fc" → "head", "net.0" → "net.0".
 * @param {string} layer
 */
export function blockOf(layer) {
  const parts = layer.split(".");
  for (let i = parts.length - 2; i >= 0; i--) {
    if (/^\d+$/.test(parts[i])) return parts.slice(0, i + 1).join(".");
  }
  const last = parts[parts.length - 1];
  return parts.length === 1 || /^\d+$/.test(last) ? layer : parts.slice(0, -1).join(".");
}

/**
 * @param {string[]} layers
 * @param {"parameter"|"layer"|"block"} grouping
 * @returns {import("./types.js").Rows}
 */
export function groupRows(layers, grouping) {
  const byParameter = isByParameter(layers);
  const layerNames = byParameter ? layers.map(layerOf) : layers;
  const keys = grouping === "block" ? layerNames.map(blockOf) : grouping === "layer" ? layerNames : layers;
  const members = new Map();
  keys.forEach((key, i) => members.set(key, [...(members.get(key) || []), i]));
  const names = [...members.keys()];
  return {
    grouping,
    names,
    members: names.map((name) => members.get(name)),
    blocks: names.map((name) => blockOf(byParameter ? layerOf(name) : name)),
  };
}

/** The kind of module of each row, "" where its members differ. @returns {string[]} */
export function kindsOf(frame, rows) {
  return rows.members.map((members) => {
    const kinds = new Set(members.map((member) => (frame.kinds[member] || "").replace(/\.bias$/, "")));
    return kinds.size === 1 ? [...kinds][0] : "";
  });
}

/**
 * Values of rows from values of layers: norms add in squares, of ratios the largest shows, of coefficients the smallest.
 * @param {import("./types.js").Frame} frame
 * @param {import("./types.js").Rows} rows
 * @returns {Float32Array} Row-major [rows × columns].
 */
export function rowValues(frame, rows) {
  if (rows.names.length === frame.layers.length) return frame.values;
  if (!merged.has(frame)) merged.set(frame, new Map());
  const known = merged.get(frame);
  if (!known.has(rows.grouping)) known.set(rows.grouping, mergeRows(frame, rows));
  return known.get(rows.grouping);
}

/** Values of grouped rows that were asked for before: the pointer asks for them at every move. */
const merged = new WeakMap();

function mergeRows(frame, rows) {
  const columns = frame.steps.length;
  const merge = frame.stat === "norm" ? Math.hypot : frame.stat === "coefficient" ? Math.min : Math.max;
  const values = new Float32Array(rows.names.length * columns);
  rows.members.forEach((members, row) => {
    for (let j = 0; j < columns; j++) {
      let value = frame.values[members[0] * columns + j];
      for (let m = 1; m < members.length; m++) {
        value = mergeTwo(value, frame.values[members[m] * columns + j], merge);
      }
      values[row * columns + j] = value;
    }
  });
  return values;
}

function mergeTwo(left, right, merge) {
  if (left === NOT_MEASURED || left === NO_GRADIENT) return right === NOT_MEASURED ? left : right;
  if (right === NOT_MEASURED || right === NO_GRADIENT) return left;
  if (Number.isNaN(left) || Number.isNaN(right)) return NaN;
  return merge(left, right);
}

/**
 * Indices of the rows that a filter lets through; all of them, and what is wrong, if it is of no use.
 * @param {string[]} names
 * @param {string} filter
 * @returns {{visible: number[], problem: string}}
 */
export function filterRows(names, filter) {
  const all = names.map((_, i) => i);
  if (!filter) return { visible: all, problem: "" };
  try {
    const pattern = new RegExp(filter);
    const visible = all.filter((i) => pattern.test(names[i]));
    return visible.length ? { visible, problem: "" } : { visible: all, problem: "no row matches; all are shown" };
  } catch {
    return { visible: all, problem: "not a regular expression; all are shown" };
  }
}
