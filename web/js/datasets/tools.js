// The bar above the grid: what is shown, search and replace, and tags of many captions at once.
import { el } from "../dom.js";
import { t } from "../text.js";
import { movedTags, placesOf, replaced, tagCounts, tagsOf, withoutTags, withTags } from "./tags.js";

const SUGGESTED = 200;
const WAIT = 120; // milliseconds without a key until the filter follows

export class Tools extends EventTarget {
  /** Fires `filter` when something else is to be shown. */
  constructor(rows, grid) {
    super();
    this.rows = rows;
    this.grid = grid;
    this.only = null; // items of a check or of drafts, a Set
    this.search = field("data.search", { type: "search" }, () => this.filterSoon());
    this.kind = select("data.show", ["all", "missing", "drafts", "findings"], () => this.filterSoon());
    this.matchCase = box("data.match_case", () => this.filterSoon());
    this.wholeWords = box("data.whole_words", () => this.filterSoon());
    this.other = field("data.replace_by", {}, () => {});
    this.replace = button("data.replace", () => this.replaceAll());
    this.tags = field("data.tags", { title: t("data.tags_hint") }, () => {});
    this.place = select("data.place", ["start", "end"], () => {});
    this.place.value = "end";
    this.suggestions = el("datalist", { id: "lf-tags" });
    this.tags.setAttribute("list", "lf-tags");
    this.tags.addEventListener("focus", () => this.suggest());
    this.add = button("data.add", () => this.tagged((caption, tags) => withTags(caption, tags, this.place.value)));
    this.remove = button("data.remove", () => this.tagged(withoutTags));
    this.move = button("data.move", () => this.tagged((caption, tags) => movedTags(caption, tags, this.place.value)));
    this.all = button("data.show_all_again", () => this.showAll(), { hidden: true });
    this.chosen = el("span", { class: "lf-chosen", "aria-live": "polite" });
    this.undo = button("data.undo", () => rows.undo());
    this.redo = button("data.redo", () => rows.redo());
    this.root = el("div", { class: "lf-tools", role: "toolbar" },
      el("div", { class: "lf-row" }, this.kind, this.search, label(this.matchCase, "data.match_case"), label(this.wholeWords, "data.whole_words"),
        this.other, this.replace, this.undo, this.redo),
      el("div", { class: "lf-row" }, this.tags, this.suggestions, this.add, this.remove, this.move, this.place, this.all, this.chosen));
    rows.addEventListener("history", () => this.showHistory());
    this.showHistory();
  }

  showHistory() {
    this.undo.disabled = !this.rows.done.length;
    this.redo.disabled = !this.rows.undone.length;
  }

  get how() {
    return { matchCase: this.matchCase.checked, wholeWords: this.wholeWords.checked };
  }

  showAll() {
    this.search.value = "";
    this.kind.value = "all";
    this.showOnly(null);
  }

  /** Whether all is shown. */
  get open() {
    return this.kind.value === "all" && !this.search.value && !this.only;
  }

  filterSoon() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.dispatchEvent(new Event("filter")), WAIT);
  }

  /** Shows these pictures alone; null: all again. */
  showOnly(items) {
    this.only = items && new Set(items);
    this.all.hidden = !items;
    this.dispatchEvent(new Event("filter"));
  }

  /** The positions to be shown, of rows that are loaded; null: all. */
  positions(drafts, findings) {
    if (this.open) return null;
    const shown = [];
    const { value: text } = this.search;
    const kind = this.kind.value;
    this.rows.rows.forEach((row, position) => {
      if (this.only && !this.only.has(row.item)) return;
      if (kind === "missing" && row.own) return;
      if (kind === "drafts" && !drafts.has(row.item)) return;
      if (kind === "findings" && !findings.has(row.item)) return;
      if (text && !placesOf(row.caption, text, this.how).length && !row.file.toLowerCase().includes(text.toLowerCase())) return;
      shown.push(position);
    });
    return shown;
  }

  showChosen() {
    const { selection, count } = this.grid;
    const key = selection.size ? "data.selected" : this.open ? "data.all" : "data.shown";
    this.chosen.textContent = t(key, { count: selection.size || count });
  }

  async replaceAll() {
    const { value: text } = this.search;
    if (!text) return this.search.focus();
    const changed = await this.rows.change(this.grid.chosen, (caption) => replaced(caption, text, this.other.value, this.how));
    this.tell("data.changed", changed);
  }

  async tagged(make) {
    const tags = tagsOf(this.tags.value);
    if (!tags.length) return this.tags.focus();
    const changed = await this.rows.change(this.grid.chosen, (caption) => make(caption, tags));
    this.tell("data.changed", changed);
  }

  tell(key, count) {
    this.dispatchEvent(new CustomEvent("told", { detail: t(key, { count }) }));
  }

  suggest() {
    const captions = this.rows.rows.map((row) => row.caption);
    this.suggestions.replaceChildren(...tagCounts(captions).slice(0, SUGGESTED).map(([tag, count]) => el("option", { value: tag, label: `${tag} (${count})` })));
  }
}

export function button(key, click, properties = {}) {
  return el("button", { type: "button", title: hint(key), ...properties, on: { click } }, t(key));
}

/** What a button does, where its name alone does not say it. */
function hint(key) {
  const text = t(`${key}_hint`);
  return text === `${key}_hint` ? null : text;
}

function field(key, properties, input) {
  return el("input", { type: "text", placeholder: t(key), "aria-label": t(key), ...properties, on: { input } });
}

function box(key, change) {
  return el("input", { type: "checkbox", on: { change } });
}

function label(input, key) {
  return el("label", { class: "lf-check" }, input, t(key));
}

export function select(key, values, change) {
  return el("select", { "aria-label": t(key), on: { change } }, values.map((value) => el("option", { value }, t(`${key}_${value}`))));
}
