// A data set's pictures as the server lists them, loaded in pages, and the edits of their captions with undo and redo.
// What other views and tabs write is shown too, but where it would come in the way of somebody who is typing.
import { api } from "../../../../scripts/api.js";
import { get, post, Refused } from "../server.js";

const FIRST = 100; // the first page is small, so that the grid is there at once
const PAGE = 500;
const EDITS = 500; // of one request
const ALONE = 20; // rows that are asked for one by one
const NEWS = "lora_foundry.dataset";

export class Rows extends EventTarget {
  /** Fires `rows` when some came or changed (`detail`: a set of positions, or null for all), `history`, `failed` (an error). */
  constructor(id) {
    super();
    this.id = id;
    this.rows = []; // by position; holes are not loaded yet
    this.total = 0;
    this.loaded = 0;
    this.listing = 0; // by which the server knows the order that is being loaded
    this.positions = new Map(); // by item
    this.undone = [];
    this.done = [];
    this.writing = Promise.resolve(); // one after the other, each over what the one before left
    this.pages = new Map(); // what is being loaded, by first position
    this.closed = false;
    this.by = Math.random().toString(36).slice(2); // what this view calls itself
    this.stale = new Set(); // items whose captions others have written since they were read
    this.typing = []; // functions that give the item that somebody is typing the caption of, if any
    this.heard = ({ detail }) => {
      if (detail.id !== this.id || !detail.items || detail.by === this.by) return;
      for (const item of detail.items) if (this.of(item)) this.stale.add(item);
      this.catchUp();
    };
    api.addEventListener(NEWS, this.heard);
  }

  close() {
    this.closed = true;
    api.removeEventListener(NEWS, this.heard);
  }

  /** Shows what others have written, but of what is being typed: that is over what the typist saw. */
  catchUp() {
    const typed = new Set(this.typing.map((item) => item()));
    const items = [...this.stale].filter((item) => !typed.has(item));
    if (items.length) this.queued(() => this.refresh(items));
  }

  /** Loads the first page. */
  async open() {
    await this.load(0, FIRST);
  }

  /** Forgets what was listed and looks again: files were added or removed. */
  async again(listing = 0) {
    this.rows = [];
    this.positions.clear();
    this.loaded = 0;
    this.listing = listing;
    await this.open();
  }

  /** Loads the other pages, one after the other. */
  async loadRest() {
    for (let first = this.next(0); first < this.total && !this.closed; first = this.next(0)) {
      try {
        await this.load(first, PAGE);
      } catch (error) {
        this.failed(error);
        return;
      }
    }
  }

  /** The first position from `first` on that is not loaded. */
  next(first) {
    while (first < this.total && this.rows[first]) first += 1;
    return first;
  }

  /** Loads what of a part of the list is not there yet, before the rest. */
  async need(first, count) {
    const from = this.next(first);
    if (from >= Math.min(first + count, this.total) || this.pages.has(from)) return;
    await this.load(from, Math.max(count, FIRST)).catch((error) => this.failed(error));
  }

  async load(after, count) {
    if (this.pages.has(after)) return this.pages.get(after);
    const page = get(["datasets", this.id, "items"], { after, count, order: "missing", listing: this.listing });
    this.pages.set(after, page);
    try {
      const { listing, total, items } = await page;
      if (this.listing && listing !== this.listing) return this.again(listing); // a server that was started anew
      this.listing = listing;
      this.total = total;
      items.forEach((row, k) => this.put(after + k, row));
      this.changed(null);
    } finally {
      this.pages.delete(after);
    }
  }

  put(position, row) {
    if (this.rows[position] && this.stale.has(row.item)) return; // is being typed
    if (!this.rows[position]) this.loaded += 1;
    this.rows[position] = row;
    this.positions.set(row.item, position);
  }

  get complete() {
    return this.loaded >= this.total;
  }

  of(item) {
    return this.rows[this.positions.get(item)];
  }

  changed(items) {
    const detail = items && new Set(items.map((item) => this.positions.get(item)));
    this.dispatchEvent(new CustomEvent("rows", { detail }));
  }

  failed(error) {
    this.dispatchEvent(new CustomEvent("failed", { detail: error }));
  }

  /**
   * Writes captions.
   *
   * @param {string[]} items whose captions
   * @param {function(string, object): string} make gives a row's caption out of that which it has now
   * @returns {Promise<number>} how many were changed
   */
  change(items, make) {
    return this.queued(() => {
      const edits = items.map((item) => this.of(item)).filter((row) => row?.editable)
        .map((row) => ({ item: row.item, before: row.caption, caption: make(row.caption, row).trim() }))
        .filter((edit) => edit.before !== edit.caption);
      return this.write(edits, this.done, [this.undone]);
    });
  }

  /** Makes captions of drafts; they can be undone like other changes. */
  accept(items, text) {
    return this.queued(() => {
      const edits = items.map((item) => ({ item, before: this.of(item).caption, caption: text(item).trim() }));
      const send = (part) => post(["datasets", this.id, "drafts"], { accept: part, reject: [], by: this.by });
      return this.write(edits, this.done, [this.undone], send);
    });
  }

  undo() {
    return this.turn(this.done, this.undone);
  }

  redo() {
    return this.turn(this.undone, this.done);
  }

  turn(from, to) {
    return this.queued(() => {
      const edits = from.pop();
      if (!edits) return 0;
      return this.write(edits.map(({ item, before, caption }) => ({ item, before: caption, caption: before })), to);
    });
  }

  queued(work) {
    const done = this.writing.then(work).catch((error) => {
      this.failed(error);
      return 0;
    });
    this.writing = done;
    return done;
  }

  async write(edits, history, cleared = [], send = (part) => post(["datasets", this.id, "captions"], { edits: part, by: this.by })) {
    const written = [];
    try {
      for (let first = 0; first < edits.length; first += EDITS) {
        const part = edits.slice(first, first + EDITS);
        await send(part);
        this.take(part);
        written.push(...part);
        if (edits.length > EDITS) this.dispatchEvent(new CustomEvent("progress", { detail: [written.length, edits.length] }));
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 409) await this.refresh(edits.map(({ item }) => item));
      throw error;
    } finally {
      if (written.length) {
        history.push(written);
        for (const other of cleared) other.length = 0;
      }
      this.dispatchEvent(new Event("history"));
    }
    return written.length;
  }

  /** Notes captions that were written. */
  take(edits) {
    for (const { item, caption } of edits) {
      const row = this.of(item);
      if (row) Object.assign(row, { caption, own: caption !== "" });
    }
    this.changed(edits.map(({ item }) => item));
  }

  /** Asks for rows anew that somebody else has changed. */
  async refresh(items) {
    for (const item of items) this.stale.delete(item);
    if (items.length > ALONE) {
      const pages = new Set(items.map((item) => Math.floor(this.positions.get(item) / PAGE) * PAGE));
      for (const first of pages) await this.load(first, PAGE);
    } else {
      for (const item of items) {
        const row = await get(["datasets", this.id, "items", item]).catch(() => null);
        if (row && this.positions.has(item)) this.rows[this.positions.get(item)] = row;
      }
      this.changed(items);
    }
    this.dispatchEvent(new Event("history"));
  }
}
