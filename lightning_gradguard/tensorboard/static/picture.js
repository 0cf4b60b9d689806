/** The figure on the page: two canvases, the pointer over them, and the pin. */

import { labelWidth } from "./axes.js";
import { el, sizeCanvas } from "./dom.js";
import { drawBase, drawMoving } from "./figure.js";
import { columnAt } from "./frame.js";
import { arrange, contains, xToStep, yToRow } from "./geometry.js";
import { eventAt, lanesOf } from "./lanes.js";
import { hasLoss } from "./strip.js";
import { describeCell, describeCompared } from "./tooltip.js";

const DRAG = 6;
const LEAST_WIDTH = 320;

export class Picture {
  /**
   * @param {Object} hooks
   * @param {function(number|null, string): void} hooks.pin Step and row name; null to let go.
   * @param {function([number, number]|null, [number, number]|null): void} hooks.zoom
   * @param {function(): Object} hooks.frames The loaded frames, by statistic.
   * @param {import("./tooltip.js").Tooltip} hooks.tooltip
   */
  constructor(hooks) {
    this.hooks = hooks;
    this.base = el("canvas", { id: "base", "aria-hidden": "true" });
    this.moving = el("canvas", {
      id: "picture", tabindex: "0", role: "img", "aria-label": "Gradients over layers and steps", "aria-describedby": "reading",
    });
    const showAll = () => this.hooks.zoom(null, null);
    this.reset = el("button", { class: "button", id: "reset", text: "Show all steps", title: "End the zoom (0)", onclick: showAll });
    this.node = el("div", { class: "figure" }, this.base, this.moving, this.reset);
    this.hover = null;
    this.selection = null;
    this.moving.addEventListener("pointermove", (event) => this.onMove(event));
    this.moving.addEventListener("pointerleave", () => this.onLeave());
    this.moving.addEventListener("pointerdown", (event) => this.onDown(event));
    this.moving.addEventListener("pointerup", (event) => this.onUp(event));
    this.moving.addEventListener("dblclick", showAll);
  }

  /** Draws all anew. */
  draw(view, palette) {
    this.view = view;
    this.palette = palette;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(LEAST_WIDTH, this.node.clientWidth);
    const measure = this.base.getContext("2d");
    this.places = arrange({
      width, room: window.innerHeight - this.node.offsetTop - 4, rows: view.span[1] - view.span[0], lanes: lanesOf(view).length,
      label: labelWidth(measure, view), hasLoss: hasLoss(view.frame), isDouble: Boolean(view.compare?.cells),
    });
    this.reset.hidden = !view.isZoomed;
    const { strip } = this.places;
    Object.assign(this.reset.style, { top: `${strip.y - 6}px`, right: `${width - strip.x - strip.width}px` });
    drawBase(sizeCanvas(this.base, width, this.places.height, ratio), this.places, view, palette, ratio);
    this.node.style.height = `${this.places.height}px`;
    this.context = sizeCanvas(this.moving, width, this.places.height, ratio);
    this.drawMoving();
  }

  /** Draws only what follows pointer and pin. */
  drawMoving() {
    this.context.clearRect(0, 0, this.places.width, this.places.height);
    const cursor = { ...this.cursor(), pin: this.pinned(), selection: this.selection };
    drawMoving(this.context, this.places, this.view, this.palette, cursor);
  }

  /** Where the profile is: under the pointer, else at the pin, else at the last step. */
  cursor() {
    return this.hover ? { ...this.hover, isPinned: false, isShown: true } : this.pinned();
  }

  /** The pin; without one the last step, not shown. */
  pinned() {
    const { state, frame } = this.view;
    const column = state.step === null ? frame.steps.length - 1 : columnAt(frame.steps, state.step);
    const row = state.layer ? this.rowOf(state.layer) : null;
    return { column, row, isPinned: state.step !== null, isShown: state.step !== null };
  }

  /** The visible row of a name, or the one whose group holds it; null if there is none. */
  rowOf(name) {
    const { visible, rows, frame } = this.view;
    const found = visible.findIndex(
      (row) => rows.names[row] === name || rows.members[row].some((member) => frame.layers[member] === name),
    );
    return found < 0 ? null : found;
  }

  onMove(event) {
    if (!this.view) return;
    const { offsetX: x, offsetY: y } = event;
    if (this.start) this.selection = this.selected(x, y, event.shiftKey);
    const places = this.places;
    const isOver = contains(places.map, x, y) || contains(places.second, x, y);
    const mark = contains(places.lanes, x, y) ? eventAt(places.lanes, this.view, x, y) : null;
    const inStrip = ["strip", "loss", "lanes"].some((name) => contains(places[name], x, y));
    this.hover = isOver || inStrip ? { column: this.columnOf(x), row: isOver ? this.rowUnder(y) : this.cursorRow() } : null;
    if (mark) this.hover.column = columnAt(this.view.frame.steps, mark.step);
    this.moving.style.cursor = isOver ? "crosshair" : mark ? "pointer" : "default";
    if (mark) this.hooks.tooltip.show({ title: mark.text, lines: [["step", String(mark.step)]] }, event.clientX, event.clientY);
    else if (isOver && !this.selection) {
      const describe = contains(places.second, x, y) ? describeCompared : describeCell;
      const cell = describe(this.view, this.hooks.frames(), this.hover.column, this.hover.row);
      this.hooks.tooltip.show(cell, event.clientX, event.clientY);
    } else this.hooks.tooltip.hide();
    this.drawMoving();
  }

  onLeave() {
    this.hover = this.selection = this.start = null;
    this.hooks.tooltip.hide();
    if (this.view) this.drawMoving();
  }

  onDown(event) {
    const { offsetX: x, offsetY: y } = event;
    const places = this.view ? ["map", "second", "strip", "loss"] : [];
    if (places.some((name) => contains(this.places[name], x, y))) this.start = { x, y };
  }

  onUp(event) {
    const area = this.selection;
    const isClick = !area;
    this.start = this.selection = null;
    if (!this.view || !this.hover) return;
    if (isClick) this.click(event.offsetX, event.offsetY);
    else this.hooks.zoom(...this.areaOf(area));
  }

  click(x, y) {
    const { state, frame } = this.view;
    const mark = contains(this.places.lanes, x, y) ? eventAt(this.places.lanes, this.view, x, y) : null;
    if (mark) return this.hooks.pin(mark.step, mark.layers[0] || "");
    const step = frame.steps[this.hover.column];
    const layer = this.hover.row === null ? "" : this.view.nameOf(this.hover.row);
    const again = state.step === step && state.layer === layer;
    return again ? this.hooks.pin(null, "") : this.hooks.pin(step, layer);
  }

  /** The dragged steps, or with Shift the dragged steps and rows; null while they are too few to be meant. */
  selected(x, y, withRows) {
    if (Math.abs(x - this.start.x) < DRAG) return this.selection;
    const { map } = this.places;
    const clampX = Math.max(map.x, Math.min(map.x + map.width, x));
    const clampY = Math.max(map.y, Math.min(map.y + map.height, y));
    const isFlat = !withRows || !contains(map, this.start.x, this.start.y) || Math.abs(clampY - this.start.y) < 2 * DRAG;
    return {
      x: Math.min(clampX, this.start.x),
      width: Math.abs(clampX - this.start.x),
      y: isFlat ? map.y : Math.min(clampY, this.start.y),
      height: isFlat ? map.height : Math.abs(clampY - this.start.y),
    };
  }

  areaOf({ x, y, width, height }) {
    const { map } = this.places;
    const { domain, span } = this.view;
    const steps = [xToStep(map, domain, x), xToStep(map, domain, x + width)];
    const rows = [yToRow(map, span, y), yToRow(map, span, y + height - 1) + 1];
    const isWhole = rows[0] === 0 && rows[1] === this.view.visible.length;
    return [steps, isWhole ? null : rows];
  }

  columnOf(x) {
    return columnAt(this.view.frame.steps, xToStep(this.places.map, this.view.domain, x));
  }

  rowUnder(y) {
    const { map, second } = this.places;
    return yToRow(y > map.y + map.height ? second : map, this.view.span, y);
  }

  cursorRow() {
    return this.view.state.layer ? this.rowOf(this.view.state.layer) : null;
  }
}
