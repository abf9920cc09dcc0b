// A grid of pictures with their captions. Only what is in view has elements, which are used again as it scrolls; so ten
// thousand pictures scroll as ten do.
import { el } from "../dom.js";
import { address } from "../server.js";
import { t } from "../text.js";

const TEXT = 62; // pixels below a picture
const GAP = 8;
const SPARE = 2; // rows above and below the view
const REST = 90; // milliseconds without scrolling after which pictures are asked for
const LONG = 2000; // milliseconds that pictures in view are waited for
const MOVES = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };

export class Grid extends EventTarget {
  /** Fires `focused`, `selected` and `need` (`detail`: first position and count). */
  constructor(rows, badgesOf) {
    super();
    this.rows = rows;
    this.badgesOf = badgesOf;
    this.shown = null; // positions that pass the filter; null: all of them
    this.edge = 176;
    this.focused = 0; // in what is shown
    this.anchor = 0;
    this.selection = new Set(); // of items
    this.cells = new Map(); // by place in what is shown
    this.spare = [];
    this.editing = null;
    rows.typing.push(() => this.editing?.item);
    this.inner = el("div", { class: "lf-grid-inner" });
    this.root = el("div", {
      class: "lf-grid", tabIndex: 0, role: "listbox", "aria-multiselectable": "true", "aria-label": t("data.pictures"),
      on: {
        scroll: () => this.scrolled(), keydown: (event) => this.pressed(event), pointerdown: (event) => this.clicked(event),
        dblclick: (event) => this.cellOf(event.target) && event.target.closest(".lf-cell-text") && this.edit(),
      },
    }, this.inner);
    this.sized = new ResizeObserver(() => this.layout());
    this.sized.observe(this.root);
  }

  get count() {
    return this.shown ? this.shown.length : this.rows.total;
  }

  position(place) {
    return this.shown ? this.shown[place] : place;
  }

  row(place) {
    return this.rows.rows[this.position(place)];
  }

  get focusedRow() {
    return this.row(this.focused);
  }

  /** What a change is made to: the selection, or else all that is shown. */
  get chosen() {
    if (this.selection.size) return [...this.selection];
    return Array.from({ length: this.count }, (_, place) => this.row(place)?.item).filter(Boolean);
  }

  layout() {
    const width = this.root.clientWidth - GAP;
    if (width <= 0) return;
    const columns = Math.max(1, Math.floor(width / (this.edge + GAP)));
    const box = Math.floor(width / columns) - GAP; // cells fill the width
    if (columns !== this.columns || box !== this.box) this.putAll();
    this.columns = columns;
    this.box = box;
    this.cellHeight = box + TEXT + GAP;
    this.inner.style.height = `${Math.ceil(this.count / this.columns) * this.cellHeight + GAP}px`;
    this.draw();
  }

  /** Shows other positions; the focus stays on its picture, if that is among them. */
  filter(shown) {
    const row = this.focusedRow;
    const position = row && this.rows.positions.get(row.item);
    const before = this.shown;
    this.shown = shown;
    const place = shown ? shown.indexOf(position) : position;
    if (String(before) === String(shown)) return this.refresh();
    this.stopEditing(true);
    this.focused = this.anchor = Math.max(0, place ?? 0);
    this.putAll();
    this.layout();
    if (place === -1) this.root.scrollTop = 0;
    this.tell("focused");
  }

  resize(edge) {
    this.edge = edge;
    this.layout();
    this.reveal();
  }

  putAll() {
    for (const cell of this.cells.values()) this.put(cell);
    this.cells.clear();
  }

  scrolled() {
    this.scrolling = true;
    this.drawing ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.drawing = null;
    if (!this.columns) return;
    const top = Math.floor(this.root.scrollTop / this.cellHeight) - SPARE;
    const bottom = Math.ceil((this.root.scrollTop + this.root.clientHeight) / this.cellHeight) + SPARE;
    const [first, last] = [Math.max(0, top * this.columns), Math.min(this.count, bottom * this.columns)];
    for (const [place, cell] of this.cells) {
      if (place >= first && place < last) continue;
      this.cells.delete(place);
      this.put(cell);
    }
    for (let place = first; place < last; place += 1) {
      if (!this.cells.has(place)) this.cells.set(place, this.take(place));
    }
    clearTimeout(this.resting);
    const drawn = (this.drawn = {});
    // a slow machine draws less often than the wait is long: only a frame without a scroll is rest
    const rest = () => drawn === this.drawn && !this.drawing && this.rested(first, last);
    this.resting = setTimeout(this.scrolling ? () => requestAnimationFrame(rest) : rest, this.scrolling ? REST : 0);
  }

  /** Pictures are asked for where the scrolling has come to rest. */
  rested(first, last) {
    this.scrolling = false;
    let missing = null;
    for (let place = first; place < last; place += 1) if (!this.row(place)) missing ??= this.position(place);
    if (missing !== null) this.dispatchEvent(new CustomEvent("need", { detail: [missing, last - first] }));
    for (const cell of this.cells.values()) {
      if (cell.wanted && cell.image.getAttribute("src") !== cell.wanted) cell.image.src = cell.wanted;
    }
  }

  /** Resolves when the pictures in view are there, or take long. */
  settled() {
    const end = performance.now() + LONG;
    return new Promise((resolve) => {
      const look = () => {
        const waiting = [...this.cells.values()].some(({ wanted, image }) => wanted && !image.complete);
        const begun = [...this.cells.values()].some(({ image }) => image.getAttribute("src"));
        if ((begun && !waiting) || !this.count || performance.now() > end) resolve();
        else setTimeout(look, 30);
      };
      look();
    });
  }

  /** An element for a place, a used one if there is one. */
  take(place) {
    const cell = this.spare.pop() ?? this.make();
    const x = (place % this.columns) * (this.box + GAP) + GAP;
    const y = Math.floor(place / this.columns) * this.cellHeight + GAP;
    Object.assign(cell.root.style, { transform: `translate(${x}px, ${y}px)`, width: `${this.box}px`, height: `${this.cellHeight - GAP}px` });
    cell.box.style.height = `${this.box}px`;
    cell.root.hidden = false;
    cell.place = place;
    this.fill(cell);
    return cell;
  }

  make() {
    const image = el("img", { alt: "", draggable: false, decoding: "async" });
    const badges = el("div", { class: "lf-cell-badges" });
    const box = el("div", { class: "lf-cell-box" }, image, badges);
    const text = el("div", { class: "lf-cell-text", dir: "auto" });
    const root = el("div", { class: "lf-cell", role: "option" }, box, text);
    image.addEventListener("error", () => image.classList.add("lf-broken"));
    image.addEventListener("load", () => image.classList.remove("lf-broken"));
    this.inner.append(root);
    return { root, image, badges, box, text };
  }

  put(cell) {
    if (this.editing?.cell === cell) this.stopEditing(true);
    cell.root.hidden = true;
    cell.root.removeAttribute("id");
    cell.image.removeAttribute("src"); // what is on its way for it is no longer wanted
    cell.wanted = null;
    this.spare.push(cell);
  }

  fill(cell) {
    const row = this.row(cell.place);
    const focused = cell.place === this.focused;
    cell.root.classList.toggle("lf-focused", focused);
    cell.root.id = `lf-cell-${cell.place}`;
    if (focused) this.root.setAttribute("aria-activedescendant", cell.root.id);
    cell.root.setAttribute("aria-selected", String(Boolean(row && this.selection.has(row.item))));
    cell.root.classList.toggle("lf-missing", Boolean(row && !row.own));
    if (!row) {
      cell.text.textContent = cell.root.title = "";
      cell.badges.replaceChildren();
      cell.wanted = null;
      cell.image.removeAttribute("src");
      return;
    }
    cell.root.title = row.file;
    cell.root.setAttribute("aria-label", `${row.file}: ${row.caption || t("data.no_caption")}`);
    cell.text.textContent = row.caption || row.fallback || t("data.no_caption");
    cell.badges.replaceChildren(...this.badgesOf(row).map(([kind, text, title]) => el("span", { class: `lf-badge lf-is-${kind}`, title }, text)));
    cell.wanted = pictureOf(this.rows.id, row, this.box * Math.min(2, window.devicePixelRatio || 1));
    if (cell.image.getAttribute("src") && cell.image.getAttribute("src") !== cell.wanted) cell.image.src = cell.wanted;
  }

  /** Shows rows anew: all that are in view, or those at some positions. */
  refresh(positions = null) {
    if (positions === null) this.layout();
    for (const [place, cell] of this.cells) {
      if (positions === null || positions.has(this.position(place))) this.fill(cell);
    }
  }

  // focus and selection

  pressed(event) {
    if (this.editing) return;
    const { key } = event;
    const control = event.ctrlKey || event.metaKey;
    const page = Math.max(1, Math.floor(this.root.clientHeight / this.cellHeight)) * this.columns;
    const steps = { ...MOVES, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page };
    if (key in steps) this.move(this.focused + steps[key], event.shiftKey);
    else if (key === "Enter" || key === "F2") this.edit();
    else if (key === " ") this.toggle(this.focused);
    else if (control && key.toLowerCase() === "a") this.selectAll();
    else if (key === "Escape" && this.selection.size) this.select([]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  move(place, extend = false) {
    if (!this.count) return;
    this.focused = Math.min(this.count - 1, Math.max(0, place));
    if (extend) this.selectRange();
    else this.anchor = this.focused;
    this.reveal();
    this.refresh();
    this.tell("focused");
  }

  /** Goes to a picture; false if it is not among those shown, or not loaded yet. */
  goTo(item) {
    const position = this.rows.positions.get(item);
    const place = this.shown ? this.shown.indexOf(position) : (position ?? -1);
    if (place < 0) return false;
    this.move(place);
    return true;
  }

  reveal() {
    const top = Math.floor(this.focused / this.columns) * this.cellHeight;
    const { scrollTop, clientHeight } = this.root;
    if (top < scrollTop) this.root.scrollTop = top;
    else if (top + this.cellHeight + GAP > scrollTop + clientHeight) this.root.scrollTop = top + this.cellHeight + GAP - clientHeight;
    this.draw();
  }

  cellOf(target) {
    const root = target.closest?.(".lf-cell");
    return root && [...this.cells.values()].find((cell) => cell.root === root);
  }

  clicked(event) {
    const cell = this.cellOf(event.target);
    if (!cell || event.target.tagName === "TEXTAREA" || event.button !== 0) return;
    if (event.ctrlKey || event.metaKey) {
      this.toggle(cell.place);
      this.move(cell.place);
    } else if (event.shiftKey) {
      this.move(cell.place, true);
    } else {
      this.selection.clear();
      this.move(cell.place);
      this.tell("selected");
    }
    event.preventDefault(); // no text is selected by Shift
    this.root.focus();
  }

  toggle(place) {
    const row = this.row(place);
    if (!row) return;
    if (!this.selection.delete(row.item)) this.selection.add(row.item);
    this.refresh();
    this.tell("selected");
  }

  selectRange() {
    const [from, to] = [Math.min(this.anchor, this.focused), Math.max(this.anchor, this.focused)];
    const items = [];
    for (let place = from; place <= to; place += 1) if (this.row(place)) items.push(this.row(place).item);
    this.selection = new Set(items);
    this.tell("selected");
  }

  selectAll() {
    this.selection.clear();
    this.select(this.chosen);
  }

  select(items) {
    this.selection = new Set(items);
    this.refresh();
    this.tell("selected");
  }

  tell(what) {
    this.dispatchEvent(new Event(what));
  }

  // the caption in its place

  edit() {
    const row = this.focusedRow;
    const cell = this.cells.get(this.focused);
    if (!row?.editable || !cell || this.editing) return;
    const box = el("textarea", { class: "lf-cell-editor", value: row.caption, spellcheck: true, dir: "auto", "aria-label": t("data.caption") });
    this.editing = { box, cell, item: row.item };
    box.addEventListener("keydown", (event) => {
      if (event.isComposing) return; // Enter ends the word that an input method composes
      if (event.key === "Escape") this.stopEditing(false);
      else if (event.key === "Enter" && !event.shiftKey) this.stopEditing(true);
      else if (event.key === "Tab") {
        this.stopEditing(true);
        this.move(this.focused + (event.shiftKey ? -1 : 1));
        this.edit();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
    box.addEventListener("blur", () => this.stopEditing(true));
    cell.root.append(box);
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }

  stopEditing(keep) {
    if (!this.editing) return;
    const { box, item } = this.editing;
    this.editing = null;
    const inside = box === document.activeElement;
    box.remove();
    if (inside) this.root.focus();
    if (keep) this.rows.change([item], () => box.value);
    this.rows.catchUp();
  }

  close() {
    this.stopEditing(true);
    clearTimeout(this.resting);
    this.sized.disconnect();
  }
}

/** Where a row's picture, its mask or a control image is. */
export function pictureOf(id, row, size, what = "picture", moving = false) {
  const query = { size: Math.round(size), t: row.version, ...(what !== "picture" && { what }), ...(moving && { moving: 1 }) };
  return address(["datasets", id, "items", row.item, "picture"], query);
}
