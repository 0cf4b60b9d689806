/** The findings in words, each with what cures it. */

import { el } from "./dom.js";
import { formatStep, plural } from "./format.js";

const SIGN = { info: "i", warning: "!", critical: "✕" };
const SHOWN = 5;

/**
 * @param {import("./types.js").Finding[]} findings
 * @param {function(number, string): void} pin Called with step and layer.
 */
export function makeDiagnosis(findings, pin) {
  const panel = el("section", { class: "panel", id: "diagnosis", "aria-label": "Diagnosis" }, el("h2", { text: "Diagnosis" }));
  const sorted = inOrder(findings);
  if (!sorted.length) panel.append(el("p", { class: "quiet", text: "No rule has found anything to report in this run." }));
  for (const finding of sorted) panel.append(findingCard(finding, pin));
  return panel;
}

/** Causes before what they lead to, as the rules have it; mere facts behind them, and last what does not hold any more. */
export function inOrder(findings) {
  const rank = (finding) => (isOver(finding) ? 2000 : finding.severity === "info" ? 1000 : 0) + (finding.place ?? 0);
  return [...findings].sort((a, b) => rank(a) - rank(b));
}

function isOver(finding) {
  return finding.until !== null && finding.until !== undefined;
}

function findingCard(finding, pin) {
  const over = isOver(finding) ? ` until step ${formatStep(finding.until)}, and not any more` : "";
  const since = `since step ${formatStep(finding.first_step)}${over}` + (finding.count > 1 ? `, held for ${plural(finding.count, "record")}` : "");
  const layers = finding.layers.slice(0, SHOWN).map((layer) =>
    el("button", { class: "chip", text: layer, title: "Show this row", onclick: () => pin(finding.step, layer) }),
  );
  const more = finding.layers.length - SHOWN;
  return el(
    "article",
    { class: `finding ${finding.severity}` },
    el("h3", {}, el("span", { class: "sign", "aria-hidden": "true", text: SIGN[finding.severity] }), finding.rule),
    el("p", { text: finding.message }),
    layers.length ? el("p", { class: "chips" }, ...layers, more > 0 ? el("span", { text: `and ${more} more` }) : null) : null,
    finding.causes.length ? el("p", {}, el("b", { text: "Likely because of " }), `${finding.causes.join("; ")}.`) : null,
    finding.remedies.length ? el("p", {}, el("b", { text: "Try, in this order" })) : null,
    finding.remedies.length ? el("ol", {}, ...finding.remedies.map((remedy) => el("li", { text: remedy }))) : null,
    el("p", { class: "quiet", text: since }),
  );
}
