/** What stands in place of the picture while there is none. */

import { el } from "./dom.js";

/** @param {"loading"|"empty"|"error"|"ready"} state */
export function setPageState(state) {
  document.documentElement.dataset.state = state;
}

export function loadingNotice(what) {
  return el("div", { class: "notice", role: "status" }, el("div", { class: "spinner" }), el("p", { text: `Reading ${what} …` }));
}

export function emptyNotice() {
  const code = [
    "from lightning_gradguard import GradGuard",
    "",
    "trainer = Trainer(callbacks=[GradGuard()])   # logs to the Trainer’s TensorBoardLogger",
  ].join("\n");
  return el(
    "div",
    { class: "notice" },
    el("h2", { text: "No gradients yet" }),
    el("p", { text: "No run in this log folder has gradient flow data. To record it, add the callback and train:" }),
    el("pre", { text: code }),
    el("p", { text: "A run that has just begun shows up here by itself with its first logged step." }),
  );
}

/** @param {Error} error @param {function(): void} retry */
export function errorNotice(error, retry) {
  return el(
    "div",
    { class: "notice", role: "alert" },
    el("h2", { text: "The gradients could not be shown" }),
    el("p", { class: "reason", text: error.message }),
    el("button", { class: "button", text: "Try again", onclick: retry }),
  );
}
