/** One sentence before any picture: the gravest finding and what to try first, or that there is nothing to report. */

import { el } from "./dom.js";
import { formatNumber, formatStep, plural } from "./format.js";

export const GRAVITY = { critical: 0, warning: 1, info: 2 };
const LEVEL = { critical: "bad", warning: "warn", info: "plain" };
const SIGN = { bad: "✕", warn: "!", plain: "i", ok: "✓" };

/** Whether a finding has cleared: it is told as what was, not as what is. @param {import("./types.js").Finding} finding */
export function isPast(finding) {
  return finding.until !== null && finding.until !== undefined;
}

/** Findings that hold before those that have cleared, the gravest first; among equals in the order of the rules. */
export function byGravity(findings) {
  const gravity = (finding) => GRAVITY[finding.severity];
  return [...findings].sort((a, b) => isPast(a) - isPast(b) || gravity(a) - gravity(b) || placeOf(a) - placeOf(b));
}

/** Causes before what they lead to, as the rules have it; mere facts behind them, and last what does not hold any more. */
export function inOrder(findings) {
  const isFact = (finding) => finding.severity === "info";
  return [...findings].sort((a, b) => isPast(a) - isPast(b) || isFact(a) - isFact(b) || placeOf(a) - placeOf(b));
}

function placeOf(finding) {
  return finding.place ?? 0;
}

/**
 * @param {import("./types.js").View} view
 * @param {function(number, string): void} pin Called with step and layer.
 */
export function makeVerdict(view, pin) {
  const { level, title, text, remedy, step, layer } = verdictOf(view);
  const goTo = () => pin(step, layer || "");
  const show = step === undefined ? null : el("button", { class: "chip", text: `show step ${formatStep(step)}`, onclick: goTo });
  return el(
    "section",
    { class: `verdict ${level}`, id: "verdict", role: "status", "aria-label": "Verdict" },
    el("p", {}, el("span", { class: "sign", "aria-hidden": "true", text: SIGN[level] }), el("b", { text: title }), " ", text, " ", show),
    remedy ? el("p", { class: "remedy" }, el("b", { text: "First try: " }), remedy) : null,
  );
}

function verdictOf(view) {
  const [gravest] = byGravity(view.events.findings);
  if (gravest && !isPast(gravest)) {
    const { rule, severity, message, remedies, layers, first_step: step } = gravest;
    return { level: LEVEL[severity], title: `${titleOf(rule)}:`, text: message, remedy: remedies[0], step, layer: layers[0] };
  }
  const { counts } = view.events;
  const bad = view.marks.filter((mark) => mark.kind === "nonfinite" || mark.kind === "rollback");
  const total = Math.max((counts.nonfinite || 0) + (counts.rollback || 0), bad.length);
  if (total) {
    const last = bad[bad.length - 1];
    const text = last ? `the last at step ${formatStep(last.step)}: ${last.text}.` : "";
    return { level: "warn", title: `${plural(total, "step")} not finite,`, text, step: last?.step, layer: last?.layers[0] };
  }
  const past = gravest ? `${titleOf(gravest.rule)} held until step ${formatStep(gravest.until)}. ` : "";
  return { level: "ok", title: "Nothing to report.", text: past + quiet(view) };
}

/** What a run looks like of which there is nothing to report. */
function quiet(view) {
  const { steps, step } = view.frame;
  const last = steps.length - 1;
  const norm = step.total_norm[last];
  const spikes = view.events.counts.spike || 0;
  const first = `Up to step ${formatStep(steps[last])} every gradient was finite`;
  return `${first}${spikes ? `, ${plural(spikes, "spike")}` : ""}; the total norm is ${formatNumber(norm)} now.`;
}

/** "vanishing-over-depth" → "Vanishing over depth" */
export function titleOf(rule) {
  const words = rule.replaceAll("-", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
