/** The same with the keyboard. */

import { el } from "./dom.js";

const HELP = [
  ["click", "pin the step and the row; again to let go"],
  ["drag", "zoom into steps, with Shift into steps and rows; double click to see all again"],
  ["← →", "step to and fro, with Shift ten columns"],
  ["↑ ↓", "row above, row below, with Shift ten"],
  ["Home, End", "first and last step"],
  ["n, p", "next and previous event"],
  ["+, −, 0", "zoom in and out over steps, all"],
  ["Esc", "let go of the pin"],
  ["/", "filter the rows"],
  ["s, c", "save as PNG, as CSV"],
  ["?", "this list"],
];

/**
 * @param {Object<string, function(number): void>} actions
 */
export function listenToKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const far = event.shiftKey ? 10 : 1;
    const run = {
      ArrowLeft: () => actions.column(-far), ArrowRight: () => actions.column(far),
      ArrowUp: () => actions.row(-far), ArrowDown: () => actions.row(far),
      Home: () => actions.column(-Infinity), End: () => actions.column(Infinity),
      n: () => actions.event(1), p: () => actions.event(-1),
      "+": () => actions.zoom(0.5), "=": () => actions.zoom(0.5), "-": () => actions.zoom(2), 0: () => actions.zoom(Infinity),
      Escape: actions.release, "/": actions.filter, s: actions.png, c: actions.csv, "?": actions.keys,
    }[event.key];
    if (!run) return;
    event.preventDefault();
    run();
  });
}

/** A dialog that lists the keys; opened with showModal(). */
export function makeKeyHelp() {
  const rows = HELP.map(([keys, what]) => el("tr", {}, el("th", { text: keys }), el("td", { text: what })));
  const dialog = el("dialog", { id: "key-help", "aria-label": "Keyboard and mouse" });
  const close = el("button", { class: "button", text: "Close", onclick: () => dialog.close() });
  dialog.append(el("h2", { text: "Keyboard and mouse" }), el("table", {}, ...rows), close);
  return dialog;
}
