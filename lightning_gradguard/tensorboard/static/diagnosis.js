/** The findings in words, each with what cures it. */

import { el } from "./dom.js";
import { formatStep, plural } from "./format.js";
import { inOrder, isPast } from "./verdict.js";

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

function findingCard(finding, pin) {
  const until = isPast(finding) ? ` until step ${formatStep(finding.until)}` : "";
  const count = finding.count > 1 ? `, held for ${plural(finding.count, "record")}` : "";
  const since = `since step ${formatStep(finding.first_step)}${until}${count}`;
  const layers = finding.layers.slice(0, SHOWN).map((layer) =>
    el("button", { class: "chip", text: layer, title: "Show this row", onclick: () => pin(finding.step, layer) }),
  );
  const more = finding.layers.length - SHOWN;
  return el(
    "article",
    { class: `finding ${isPast(finding) ? "past" : finding.severity}` },
    el("h3", {}, el("span", { class: "sign", "aria-hidden": "true", text: SIGN[finding.severity] }), finding.rule + (until && `,${until}`)),
    el("p", { text: finding.message }),
    layers.length ? el("p", { class: "chips" }, ...layers, more > 0 ? el("span", { text: `and ${more} more` }) : null) : null,
    finding.causes.length ? el("p", {}, el("b", { text: "Likely because of " }), `${finding.causes.join("; ")}.`) : null,
    finding.remedies.length ? el("p", {}, el("b", { text: "Try, in this order" })) : null,
    finding.remedies.length ? el("ol", {}, ...finding.remedies.map((remedy) => el("li", { text: remedy }))) : null,
    el("p", { class: "quiet", text: since }),
  );
}
