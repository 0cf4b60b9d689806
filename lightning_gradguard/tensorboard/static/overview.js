/** All runs in one table, the newest first: what became of each, and the way in. */

import { el } from "./dom.js";
import { formatAge, formatFactor, formatNumber, formatShare, formatStep, plural } from "./format.js";
import { GRAVITY, isPast } from "./verdict.js";

const SIGN = { critical: "✕", warning: "!", info: "i", ok: "✓" };

/** What of a run is in which column, and what it is sorted by. */
const COLUMNS = [
  { id: "run", text: "run", by: (run) => run.name, shows: (run) => run.name || "." },
  { id: "verdict", text: "verdict", by: (run) => GRAVITY[levelOf(run)] ?? 3 },
  { id: "age", text: "written", by: (run) => -run.wall_time, shows: ageOf },
  { id: "steps", text: "step", by: (run) => -run.last_step, shows: (run) => formatStep(run.last_step), isNumber: true },
  { id: "nonfinite", text: "non-finite", by: (run) => -run.nonfinite, shows: (run) => formatStep(run.nonfinite), isNumber: true },
  { id: "clipped", text: "clipped", by: (run) => -(run.clipped ?? -1), shows: (run) => orDash(run.clipped, formatShare), isNumber: true },
  { id: "spread", text: "spread", by: (run) => -(run.spread ?? -1), shows: (run) => orDash(run.spread, formatFactor), isNumber: true },
  { id: "loss", text: "last loss", by: (run) => lossRank(run), shows: (run) => orDash(run.loss, lossText), isNumber: true },
];

export class Overview {
  /**
   * @param {function(string): void} enter Called with the name of the run that was chosen.
   * @param {boolean} isLive Whether the clock of the runs is a clock: that of a report is not.
   */
  constructor(enter, isLive) {
    this.enter = enter;
    this.columns = COLUMNS.filter((column) => isLive || column.id !== "age");
    this.sorted = isLive ? "age" : "run";
    this.search = el("input", { id: "search", type: "search", placeholder: "name or verdict", spellcheck: "false" });
    this.search.addEventListener("input", () => this.list());
    this.count = el("span", { class: "quiet", role: "status" });
    this.note = el("p", { class: "reason", role: "alert" });
    this.body = el("tbody");
    this.lost = el("div", { id: "unreadable" });
    this.heads = this.columns.map((column) => this.head(column));
    const table = el("table", { class: "runs" }, el("thead", {}, el("tr", {}, ...this.heads)), this.body);
    const field = el("label", { class: "field", for: "search" }, el("span", { text: "Search" }), this.search);
    const top = el("div", { class: "controls" }, el("h2", { text: "Runs" }), field, this.count);
    this.node = el("section", { id: "overview", "aria-label": "All runs", hidden: true }, top, this.note, el("div", { class: "wide" }, table), this.lost);
    this.runs = [];
  }

  /** @param {import("./types.js").RunList} list @param {string} note Why the list is shown, if not by choice. */
  draw({ runs, unreadable }, note = "") {
    this.runs = runs;
    this.note.textContent = note;
    this.lost.replaceChildren(...lostRuns(unreadable));
    this.list();
  }

  list() {
    const wanted = this.search.value.trim().toLowerCase();
    const found = this.runs.filter((run) => `${run.name} ${verdictOf(run)}`.toLowerCase().includes(wanted));
    const { by } = COLUMNS.find(({ id }) => id === this.sorted);
    const inOrder = (a, b) => (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : b.wall_time - a.wall_time);
    this.body.replaceChildren(...found.sort(inOrder).map((run) => this.row(run)));
    this.count.textContent = found.length === this.runs.length ? plural(found.length, "run") : `${found.length} of ${plural(this.runs.length, "run")}`;
    if (!found.length && this.runs.length) this.body.append(el("tr", {}, el("td", { colspan: String(this.columns.length), class: "quiet", text: "No run has that in its name or verdict." })));
    this.heads.forEach((head, i) => head.setAttribute("aria-sort", this.columns[i].id === this.sorted ? "ascending" : "none"));
  }

  head({ id, text, isNumber }) {
    const sort = () => {
      this.sorted = id;
      this.list();
    };
    const button = el("button", { class: "bare", text, title: `Sort by ${text}`, onclick: sort });
    return el("th", { scope: "col", class: isNumber ? "number" : null }, button);
  }

  row(run) {
    const cells = this.columns.map((column) => {
      if (column.id === "run") return el("td", { class: "name" }, this.link(run));
      if (column.id === "verdict") return verdictCell(run);
      const isBad = (column.id === "nonfinite" && run.nonfinite > 0) || (column.id === "loss" && typeof run.loss === "string");
      return el("td", { class: [column.isNumber && "number", isBad && "bad"].filter(Boolean).join(" ") || null, text: column.shows(run) });
    });
    return el("tr", { "data-run": run.name, onclick: () => this.enter(run.name) }, ...cells);
  }

  link(run) {
    return el("button", { class: "bare", text: run.name || ".", title: `Show ${run.name || "."}` });
  }
}

/** Runs of which nothing can be read, each with the reason. */
function lostRuns(unreadable = {}) {
  const names = Object.keys(unreadable).sort();
  if (!names.length) return [];
  const lines = names.map((name) => el("li", {}, el("b", { text: name || "." }), `: ${unreadable[name]}`));
  return [el("p", { text: `${plural(names.length, "run")} cannot be read:` }), el("ul", {}, ...lines)];
}

function verdictCell(run) {
  const level = levelOf(run);
  const sign = el("span", { class: "sign", "aria-hidden": "true", text: SIGN[level] });
  return el("td", { class: `verdict ${level}`, title: run.finding?.message }, sign, verdictOf(run));
}

/** How bad it is: a finding that has cleared is past, steps that were not finite are worth a look. */
function levelOf(run) {
  if (run.finding && !isPast(run.finding)) return run.finding.severity;
  return run.nonfinite > 0 || typeof run.loss === "string" ? "warning" : "ok";
}

function verdictOf(run) {
  if (run.finding) {
    const more = run.findings > 1 ? ` and ${run.findings - 1} more` : "";
    return run.finding.rule + (isPast(run.finding) ? `, until step ${formatStep(run.finding.until)}` : "") + more;
  }
  return run.nonfinite > 0 ? "steps that were not finite" : typeof run.loss === "string" ? "the loss is not finite" : "nothing to report";
}

function ageOf(run) {
  return `${formatAge(Date.now() / 1000 - run.wall_time)} ago`;
}

function lossRank(run) {
  return typeof run.loss === "string" ? Infinity : run.loss ?? 1e300;
}

function lossText(loss) {
  return typeof loss === "string" ? { nan: "NaN", inf: "∞", "-inf": "−∞" }[loss] : formatNumber(loss);
}

function orDash(value, format) {
  return value === null || value === undefined ? "–" : format(value);
}
