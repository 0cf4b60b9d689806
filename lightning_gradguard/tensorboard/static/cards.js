/** Alerts first: a card for each thing worth knowing before looking at the picture. */

import { el } from "./dom.js";
import { formatFactor, formatNumber, formatShare, formatStep, plural } from "./format.js";
import { slopeOf } from "./statistics.js";
import { inOrder, isPast } from "./verdict.js";

const SIGN = { ok: "✓", warn: "!", bad: "✕", plain: "" };

/**
 * @param {Object} view
 * @param {function(number): void} pin Called with the step that a card speaks of.
 */
export function makeCards(view, pin) {
  const cards = [nonfinite(view), spikes(view), findings(view), clipping(view), depth(view), scale(view), size(view)];
  return el("div", { class: "cards", role: "list", "aria-label": "Summary" }, ...cards.filter(Boolean).map((c) => card(c, pin)));
}

function card({ id, level, value, label, detail, step }, pin) {
  const content = [
    el("span", { class: "sign", "aria-hidden": "true", text: SIGN[level] }),
    el("span", { class: "value", text: value }),
    el("span", { class: "label", text: label }),
    el("span", { class: "detail", text: detail, title: detail }),
  ];
  const jump = step === undefined ? {} : { onclick: () => pin(step), title: `Go to step ${formatStep(step)}` };
  const tag = step === undefined ? "div" : "button";
  return el("div", { role: "listitem" }, el(tag, { class: `card ${level}`, id: `card-${id}`, ...jump }, ...content));
}

function nonfinite(view) {
  const counts = view.events.counts;
  const routine = counts.overflow || 0;
  const bad = view.marks.filter((mark) => mark.kind === "nonfinite" || mark.kind === "rollback");
  const total = Math.max((counts.nonfinite || 0) + (counts.rollback || 0), bad.length);
  const last = bad[bad.length - 1];
  const overflow = routine ? `${plural(routine, "overflow")} left to the loss scaler` : "";
  return {
    id: "nonfinite", level: total ? "bad" : "ok", value: formatStep(total), label: "non-finite",
    detail: last ? `last at step ${formatStep(last.step)}` : overflow || "every gradient was finite", step: last?.step,
  };
}

function spikes(view) {
  const marks = view.marks.filter((mark) => mark.kind === "spike");
  const total = view.events.counts.spike || 0;
  const largest = marks.reduce((best, mark) => (!best || mark.factor > best.factor ? mark : best), null);
  return {
    id: "spikes", level: marks.length ? "warn" : "ok", value: formatStep(total), label: total === 1 ? "spike" : "spikes",
    detail: largest ? `largest ${formatFactor(largest.factor)} at step ${formatStep(largest.step)}` : "no norm stands out",
    step: largest?.step,
  };
}

function findings(view) {
  const all = inOrder(view.events.findings);
  const list = all.filter((finding) => !isPast(finding));
  const [first] = list;
  const critical = list.some((finding) => finding.severity === "critical");
  const past = all.length ? `${plural(all.length, "finding")} cleared` : "nothing to report";
  return {
    id: "findings", level: critical ? "bad" : first ? "warn" : "ok", value: formatStep(list.length),
    label: list.length === 1 ? "finding" : "findings", detail: first?.rule ?? past, step: (first ?? all[0])?.first_step,
  };
}

function clipping(view) {
  const { num_clipped: clipped, num_steps: steps, coefficient } = view.frame.step;
  if (!coefficient.some((value) => value >= 0)) return null;
  const share = sum(clipped) / Math.max(1, sum(steps));
  let hardest = -1;
  coefficient.forEach((value, j) => {
    if (value >= 0 && (hardest < 0 || value < coefficient[hardest])) hardest = j;
  });
  return {
    id: "clipped", level: share > 0.5 ? "warn" : "ok", value: formatShare(share), label: view.frame.dryRun ? "of steps it would clip (dry run)" : "of steps clipped",
    detail: `down to ${formatNumber(coefficient[hardest])} of the norm`, step: view.frame.steps[hardest],
  };
}

function depth(view) {
  const middle = view.band.middle;
  const known = middle.filter((log) => !Number.isNaN(log));
  if (known.length < 3 || view.state.stat === "coefficient") return null;
  const slope = slopeOf(middle);
  const spread = Math.max(...known) - Math.min(...known);
  const falls = Math.abs(slope) * known.length > 3;
  const change = slope > 0 ? "÷" : "×";
  return {
    id: "depth", level: falls ? "warn" : "ok", value: formatFactor(10 ** spread), label: "between layers",
    detail: falls ? `${change}${formatNumber(10 ** Math.abs(slope))} with each row to the input` : "no trend over depth",
  };
}

function scale(view) {
  const scales = view.frame.step.loss_scale.filter((value) => value > 0);
  if (!scales.length) return null;
  const last = scales[scales.length - 1];
  return {
    id: "scale", level: last < 1 ? "bad" : "plain", value: formatStep(last), label: "loss scale",
    detail: `${formatNumber(Math.min(...scales))} to ${formatNumber(Math.max(...scales))} so far`,
  };
}

function size(view) {
  const { steps } = view.frame;
  return {
    id: "size", level: "plain", value: formatStep(steps[steps.length - 1]), label: "steps",
    detail: `${plural(view.frame.layers.length, "layer")} × ${plural(steps.length, "column")}`,
  };
}

function sum(values) {
  return values.reduce((total, value) => total + Math.max(0, value), 0);
}
