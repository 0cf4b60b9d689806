/** Holds the state, loads what it needs, and draws it. */

import { makeCards } from "./cards.js";
import { STATS } from "./cells.js";
import { makeControls } from "./controls.js";
import { makeDiagnosis } from "./diagnosis.js";
import { debounce, el } from "./dom.js";
import { makeEventTable } from "./eventtable.js";
import { formatAge, formatStep } from "./format.js";
import { listenToKeys, makeKeyHelp } from "./keyboard.js";
import { readLink, watchLink, writeLink } from "./link.js";
import { keepFresh } from "./live.js";
import { Loader } from "./loader.js";
import { movedPin, pinAtEvent, zoomedSteps } from "./navigate.js";
import { emptyNotice, errorNotice, loadingNotice, setPageState } from "./notice.js";
import { Overview } from "./overview.js";
import { paletteOf } from "./palette.js";
import { Picture } from "./picture.js";
import { download, figureCanvas, toCsv } from "./save.js";
import { emptyState, settle } from "./state.js";
import { isDark, watchTheme } from "./theme.js";
import { describeCell, Tooltip } from "./tooltip.js";
import { Trial } from "./trial.js";
import { makeVerdict } from "./verdict.js";
import { makeView, zoom } from "./view.js";

// Other statistics are fetched ahead for the tooltip only where they are small.
const AHEAD = 400000;

export class App {
  constructor(root, source) {
    this.source = source;
    this.loader = new Loader(source);
    this.state = { ...emptyState(), ...readLink() };
    this.picture = new Picture({
      pin: (step, layer) => this.change({ step, layer }),
      zoom: (steps, span) => this.change({ steps, span }),
      frames: () => this.loader.loaded(this.state.run, this.state.optimizer),
      tooltip: new Tooltip(),
    });
    this.help = makeKeyHelp();
    this.filter = this.state.filter;
    this.top = el("header", { class: "top" });
    this.summary = el("div");
    this.notice = el("div");
    this.trial = new Trial((clip) => this.change({ clip }), source.isLive);
    this.overview = new Overview((run) => this.change({ ...emptyState(), run }), source.isLive);
    this.below = el("div", { class: "below" });
    this.reading = el("p", { class: "reading", id: "reading", role: "status" });
    const parts = [this.top, this.notice, this.overview.node, this.summary, this.trial.node, this.picture.node, this.reading, this.below];
    root.append(el("main", {}, ...parts), this.help);
  }

  /** Shows the first picture, then follows run, window, theme and address. */
  async start() {
    this.applyTheme();
    await this.load();
    watchTheme(() => this.applyTheme());
    watchLink(() => this.followLink());
    window.addEventListener("resize", debounce(() => this.view && this.draw(), 80));
    listenToKeys(this.keys());
    if (this.source.isLive) keepFresh(() => this.refresh());
  }

  /** Takes over a part of the state; loads only if that needs other data. */
  async change(part) {
    const before = this.state;
    this.state = { ...before, ...part };
    const data = ["run", "compare", "optimizer", "stat", "anchor", "rows", "filter", "clip"];
    if (data.some((name) => this.state[name] !== before[name])) await this.load();
    else if (this.view) {
      zoom(this.view, this.state);
      this.draw();
    }
  }

  async load() {
    const turn = (this.turn = (this.turn || 0) + 1);
    try {
      if (!this.view) this.show("loading", loadingNotice("the runs"));
      if (!this.loader.runs.length) await this.loader.refresh();
      if (!this.loader.runs.length && !this.hasUnreadable()) return this.show("empty", emptyNotice());
      if (!(await this.findRun())) return this.list();
      const view = await this.prepare();
      if (turn !== this.turn) return undefined; // a later choice has overtaken this one
      this.view = view;
      this.show("ready", null);
      this.draw();
      performance.mark("gradguard-picture");
      this.fetchAhead();
    } catch (error) {
      this.view = null;
      this.show("error", errorNotice(error, () => this.load()));
    }
    return undefined;
  }

  /** Whether there is one run to show: the chosen one, or the only one there is. */
  async findRun() {
    const isKnown = () => this.loader.runs.some((run) => run.name === this.state.run);
    if (this.state.run && !isKnown()) await this.loader.refresh(); // it may have begun just now
    if (!isKnown() && this.loader.runs.length === 1 && !this.hasUnreadable()) this.state = { ...this.state, run: this.loader.runs[0].name };
    return isKnown();
  }

  hasUnreadable() {
    return Object.keys(this.loader.unreadable).length > 0;
  }

  /** All runs, in place of the picture of one. */
  list() {
    this.view = null;
    const note = this.state.run ? `There is no run “${this.state.run}”; these are the runs that there are.` : "";
    this.state = { ...this.state, run: "" };
    this.show("runs", null);
    this.overview.draw(this.loader, note);
    writeLink(this.state);
    performance.mark("gradguard-runs");
  }

  /** Settles the state on what there is, and fetches it. */
  async prepare() {
    const { run } = this.state;
    const names = this.loader.runs.map((info) => info.name);
    const compare = names.includes(this.state.compare) && this.state.compare !== run ? this.state.compare : "";
    const optimizer = this.loader.optimizerOf(run, this.state.optimizer);
    if (!this.view) this.show("loading", loadingNotice(`run “${run}”`));
    const events = this.loader.events(run, optimizer);
    const curve = this.loader.curve(run, optimizer, this.state.clip);
    let frame = await this.loader.flow(run, optimizer, this.state.stat in STATS ? this.state.stat : "ratio");
    this.state = settle({ ...this.state, compare, optimizer }, frame);
    if (frame.stat !== this.state.stat) frame = await this.loader.flow(run, optimizer, this.state.stat);
    const other = compare
      ? await this.loader.flow(compare, this.loader.optimizerOf(compare, optimizer), this.state.stat)
      : null;
    const view = makeView({ state: this.state, frame, other, events: await events });
    return Object.assign(view, { curve: await curve });
  }

  /** Looks whether the shown runs have grown; a failure is shown only as a line, the picture stays. */
  async refresh() {
    try {
      const grown = await this.loader.refresh();
      if (document.documentElement.dataset.state === "runs") this.overview.draw(this.loader);
      else if (!this.view || grown.has(this.state.run) || grown.has(this.state.compare)) await this.load();
      else this.showAge();
    } catch (error) {
      if (document.documentElement.dataset.state === "runs") this.overview.draw(this.loader, error.message);
      this.setLive("stale", error.message);
    }
  }

  show(state, notice) {
    setPageState(state);
    this.notice.replaceChildren(...(notice ? [notice] : []));
    for (const node of [this.summary, this.picture.node, this.reading, this.below]) node.hidden = state !== "ready";
    this.trial.node.hidden = state !== "ready";
    this.overview.node.hidden = state !== "runs";
    this.top.hidden = state === "runs";
    if (state !== "ready") this.drawControls(null);
  }

  draw() {
    this.drawControls(this.view.frame);
    const pin = (step, layer = "") => this.change({ step, layer });
    this.summary.replaceChildren(makeVerdict(this.view, pin), makeCards(this.view, (step) => pin(step)));
    this.trial.show(this.view.curve, this.state.clip);
    this.picture.draw(this.view, this.palette);
    Object.assign(document.documentElement.dataset, {
      rows: this.view.span[1] - this.view.span[0],
      columns: this.view.frame.steps.length,
      drawn: Number(document.documentElement.dataset.drawn || 0) + 1,
    });
    const table = makeEventTable(this.view, this.state.step, pin);
    this.below.replaceChildren(makeDiagnosis(this.view.events.findings, pin), table);
    this.readOut();
    this.showAge();
    writeLink(this.state);
  }

  /** The controls; left alone where nothing has changed, so that a live update closes no menu. */
  drawControls(frame) {
    const { state } = this;
    const { runs } = this.loader;
    const choices = ["run", "compare", "optimizer", "stat", "anchor", "rows"].map((name) => state[name]);
    const key = JSON.stringify([choices, runs.map((run) => [run.name, run.optimizers]), frame?.measured]);
    if (key !== this.controlsKey) {
      this.controlsKey = key;
      const active = this.top.contains(document.activeElement) ? document.activeElement : null;
      const typed = active?.id === "filter" ? active.value : state.filter;
      const runsOnly = () => this.change(emptyState());
      const actions = { runs: runsOnly, png: () => this.savePng(), csv: () => this.saveCsv(), keys: () => this.help.showModal() };
      const change = (part) => this.change(part);
      const filter = (text) => this.filterBy(text);
      const shown = { ...state, filter: typed };
      this.top.replaceChildren(makeControls({ state: shown, runs, frame, change, filter, actions }));
      if (active) document.getElementById(active.id)?.focus();
    }
    this.syncFilter();
  }

  /** What was typed becomes the filter; the box itself stays as it is, more may be typed already. */
  filterBy(text) {
    this.filter = text;
    this.change({ filter: text, span: null });
  }

  /** The filter box after a change that did not come from it, and what is wrong with its text. */
  syncFilter() {
    const box = document.getElementById("filter");
    if (!box) return;
    if (this.state.filter !== this.filter) box.value = this.filter = this.state.filter;
    const problem = this.view?.problem || "";
    box.setCustomValidity(problem);
    document.getElementById("filter-problem").textContent = problem;
  }

  /** The pinned cell in one line, for the eye and for screen readers. */
  readOut() {
    const { column, row, isPinned } = this.picture.pinned();
    document.documentElement.dataset.pin = isPinned ? String(this.state.step) : "";
    if (!isPinned) {
      this.reading.textContent = "Click the picture to pin a step, drag to zoom into steps, with Shift into rows too; the arrow keys move the pin.";
      return;
    }
    const cell = row === null ? null : describeCell(this.view, this.picture.hooks.frames(), column, row);
    const parts = cell ? cell.lines.slice(1).map(([name, value]) => `${name} ${value}`) : [];
    const step = formatStep(this.view.frame.steps[column]);
    this.reading.textContent = [`Pinned: step ${step}`, cell?.title, ...parts].filter(Boolean).join(" · ");
  }

  showAge() {
    if (!this.source.isLive || !this.view) return;
    const times = this.view.frame.wallTimes;
    const age = Date.now() / 1000 - times[times.length - 1];
    this.setLive(age < 60 ? "on" : "", age < 60 ? "live" : `last step ${formatAge(age)} ago`);
  }

  setLive(kind, text) {
    const badge = document.getElementById("live");
    if (!badge) return;
    badge.className = `live ${kind}`;
    badge.textContent = text;
  }

  applyTheme() {
    const dark = isDark();
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    this.palette = paletteOf(dark);
    if (this.view) this.draw();
  }

  followLink() {
    const linked = { ...emptyState(), ...readLink() };
    if (linked.run) this.change(linked); // without one it was TensorBoard that went to another tab, or came back
  }

  fetchAhead() {
    const { frame } = this.view;
    const { run, optimizer } = this.state;
    if (frame.values.length > AHEAD) return;
    for (const stat of frame.measured) this.loader.flow(run, optimizer, stat).catch(() => undefined);
  }

  keys() {
    const go = (target) => (...by) => {
      const part = this.view && target(...by);
      if (part) this.change(part);
    };
    return {
      column: go((by) => movedPin(this.view, this.picture.pinned(), by, 0)),
      row: go((by) => movedPin(this.view, this.picture.pinned(), 0, by)),
      event: go((by) => pinAtEvent(this.view, this.state.step, by)),
      zoom: go((factor) => zoomedSteps(this.view, this.state.step, factor)),
      release: go(() => ({ step: null, layer: "" })),
      filter: () => document.getElementById("filter")?.focus(),
      png: () => this.savePng(),
      csv: () => this.saveCsv(),
      keys: () => this.help.showModal(),
    };
  }

  savePng() {
    if (!this.view) return;
    const { places } = this.picture;
    const cursor = { ...this.picture.pinned(), pin: this.picture.pinned(), selection: null };
    const { steps } = this.view.frame;
    const step = formatStep(steps[steps.length - 1]);
    const canvas = figureCanvas(places, this.view, this.palette, cursor, `${this.state.run}, ${step} steps`);
    canvas.toBlob((blob) => download(blob, this.fileName("png")));
  }

  saveCsv() {
    if (this.view) download(new Blob([toCsv(this.view)], { type: "text/csv" }), this.fileName("csv"));
  }

  fileName(ending) {
    return `gradient-flow-${this.state.run.replace(/[^\w.-]+/g, "_")}-${this.state.stat}.${ending}`;
  }
}
