/** A clipping policy that is tried on the run that is shown, beside its total norm. */

import { el } from "./dom.js";
import { formatNumber, formatShare } from "./format.js";

const USUAL = ["NormClip(1.0)", "ZClip()", "ZClip(z=3.0)", "AutoClip()", "AutoClip(percentile=90)", "QuantileClip()"];

/** The box, which stays while the picture is drawn anew, so that nothing typed is lost. */
export class Trial {
  /**
   * @param {function(string): void} pick Called with a policy in writing; "" for none.
   * @param {boolean} isLive Whether there is a server, which runs the policies.
   */
  constructor(pick, isLive) {
    this.isLive = isLive;
    const list = el("datalist", { id: "clip-usual" }, ...USUAL.map((text) => el("option", { value: text })));
    const hints = { placeholder: "ZClip(z=3.0)", list: "clip-usual", spellcheck: "false", size: 28 };
    this.box = el("input", { id: "clip", type: "search", ...hints });
    this.answer = el("span", { id: "clip-answer", role: "status" });
    const label = el("label", { class: "field", for: "clip" }, el("span", { text: "What if it were clipped by" }), this.box);
    const button = el("button", { class: "button", id: "clip-try", type: "submit", text: "Try" });
    const submit = (event) => {
      event.preventDefault();
      pick(this.box.value.trim());
    };
    this.node = el("form", { class: "controls", id: "trial", onsubmit: submit }, label, button, list, this.answer);
  }

  /** Says what came of it. @param {Object|null} curve @param {string} clip */
  show(curve, clip) {
    this.node.hidden = !this.isLive || !curve?.steps.length;
    if (document.activeElement !== this.box) this.box.value = clip;
    this.answer.textContent = curve?.problem || (curve?.policy ? inWords(curve) : "");
  }
}

function inWords({ policy, share, smallest }) {
  const how = share > 0 ? `, down to ${formatNumber(smallest)} of the norm` : "";
  return `${policy} would have clipped ${formatShare(share)} of the steps${how}. It would have changed those that come after.`;
}
