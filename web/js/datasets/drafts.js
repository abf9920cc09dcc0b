// Captions that a model or a node has written: asked for here, and reviewed before they become captions.
import { el } from "../dom.js";
import { get, post } from "../server.js";
import { t } from "../text.js";
import { pictureOf } from "./grid.js";
import { button, select } from "./tools.js";

const SHOWN = 50; // drafts that have elements; the others follow as these are reviewed
const PART = 500; // of one request

export class Drafts extends EventTarget {
  /** Fires `drafts` when others are there, and `jump` (`detail`: an item). */
  constructor(rows, grid) {
    super();
    this.rows = rows;
    this.grid = grid;
    this.drafts = new Map(); // by item
    this.texts = new Map(); // as the reviewer has edited them
    this.entries = new Map(); // what is shown, by item
    this.reviewing = new Set(); // items that the server is being told of
    this.loads = 0;
    this.model = el("select", { "aria-label": t("data.model") });
    this.which = select("data.caption_which", ["missing", "selected"], () => {});
    this.instruction = el("input", { type: "text", placeholder: t("data.instruction"), "aria-label": t("data.instruction") });
    this.start = button("data.caption_start", () => this.ask());
    this.state = el("div", { class: "lf-state", role: "status" });
    this.acceptAll = button("data.accept_all", () => this.review([...this.drafts.keys()], []));
    this.rejectAll = button("data.reject_all", () => this.review([], [...this.drafts.keys()]));
    this.list = el("div", { class: "lf-draft-list" });
    this.asked = el("div", { class: "lf-captioning" }, el("div", { class: "lf-row" }, this.model, this.which), this.instruction, el("div", { class: "lf-row" }, this.start));
    this.root = el("div", { class: "lf-drafts", hidden: true }, this.asked, this.state,
      el("div", { class: "lf-row" }, this.acceptAll, this.rejectAll), this.list);
    this.draw();
  }

  /** The models that are installed; asked for when somebody wants to see them. */
  async models() {
    if (this.known) return;
    this.known = true;
    const { models, places } = await get(["captioners"]).catch((error) => ({ models: [], places: [error.message] }));
    const usable = models.filter(({ problem }) => !problem);
    this.model.replaceChildren(...models.map(({ id, name, problem }) => el("option", { value: id, disabled: Boolean(problem), title: problem ?? "" }, name)));
    if (usable.length) this.model.value = usable[0].id;
    for (const one of [this.model, this.which, this.instruction, this.start]) one.disabled = !usable.length;
    if (!usable.length) {
      const unusable = models.map(({ name, problem }) => el("li", {}, `${name}: ${problem}`));
      this.asked.replaceChildren(el("p", {}, t("data.no_model")), el("ul", {}, places.map((place) => el("li", {}, place)), unusable), el("p", {}, t("data.no_model_node")));
    }
  }

  async ask() {
    const { selection } = this.grid;
    const items = this.which.value === "selected" ? [...selection] : this.rows.rows.filter((row) => !row.own).map((row) => row.item);
    if (!items.length) {
      this.state.textContent = t("data.none_chosen");
      return;
    }
    this.start.disabled = true;
    try {
      await post(["datasets", this.rows.id, "captioning"], { model: this.model.value, items, instruction: this.instruction.value });
      this.state.textContent = t("data.captioning_queued", { count: items.length });
    } catch (error) {
      this.state.textContent = error.message;
    } finally {
      this.start.disabled = false;
    }
  }

  async load() {
    const load = ++this.loads;
    const { drafts } = await get(["datasets", this.rows.id, "drafts"]);
    if (load !== this.loads) return; // a later one knows more
    this.show(drafts.filter(({ item }) => !this.reviewing.has(item)));
  }

  show(drafts) {
    this.drafts = new Map(drafts.map((draft) => [draft.item, draft]));
    this.draw();
    this.dispatchEvent(new Event("drafts"));
  }

  progress({ done, of, error }) {
    this.state.textContent = error ?? (done === of ? "" : t("data.captioning", { done, of }));
  }

  /** What is shown already stays as it is: somebody may be typing in it. */
  draw() {
    const shown = [...this.drafts.values()].slice(0, SHOWN);
    this.acceptAll.disabled = this.rejectAll.disabled = !shown.length;
    const entries = new Map(shown.map((draft) => [draft.item, this.entryOf(draft)]));
    const list = shown.length ? [...entries.values()].map(({ root }) => root) : [el("p", { class: "lf-hint" }, t("data.no_drafts"))];
    for (const child of [...this.list.children]) if (!list.includes(child)) child.remove();
    list.forEach((root, k) => root !== this.list.children[k] && this.list.insertBefore(root, this.list.children[k] ?? null));
    this.entries = entries;
  }

  entryOf(draft) {
    const row = this.rows.of(draft.item);
    const of = JSON.stringify([draft.caption, draft.by, row?.file, row?.caption]);
    const known = this.entries.get(draft.item);
    return known?.of === of ? known : { of, root: this.entry(draft) };
  }

  entry({ item, caption, by }) {
    const row = this.rows.of(item);
    const box = el("textarea", {
      rows: 4, value: this.texts.get(item) ?? caption, dir: "auto", "aria-label": t("data.draft"),
      on: { input: () => this.texts.set(item, box.value), keydown: (event) => this.pressed(event, item) },
    });
    const picture = row && el("img", { alt: row.file, src: pictureOf(this.rows.id, row, 128), on: { click: () => this.jump(item) } });
    return el("div", { class: "lf-draft", dataset: { item } }, picture,
      el("div", { class: "lf-draft-texts" },
        el("div", { class: "lf-file" }, row?.file ?? "", el("span", { class: "lf-by" }, ` ${by}`)),
        row?.caption ? el("div", { class: "lf-before", dir: "auto" }, row.caption) : null, box,
        el("div", { class: "lf-row" }, button("data.accept", () => this.review([item], [])), button("data.reject", () => this.review([], [item])))));
  }

  pressed(event, item) {
    if (event.isComposing || event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
    this.review([item], []);
  }

  jump(item) {
    this.dispatchEvent(new CustomEvent("jump", { detail: item }));
  }

  /** Accepts drafts, as they have been edited, and rejects others. They leave the list at once; refused ones come back. */
  async review(accepted, rejected) {
    const writes = new Map(accepted.filter((item) => this.rows.of(item)).map((item) => [item, this.texts.get(item) ?? this.drafts.get(item).caption]));
    const items = [...accepted, ...rejected];
    const after = this.entries.get(items.at(-1))?.root.nextElementSibling;
    for (const item of items) this.reviewing.add(item);
    this.show([...this.drafts.values()].filter(({ item }) => !this.reviewing.has(item)));
    const next = after?.isConnected ? after : this.list;
    (next.querySelector("textarea") ?? this.list.querySelector("textarea") ?? this.list).focus();
    await this.rows.accept([...writes.keys()], (item) => writes.get(item));
    for (let first = 0; first < rejected.length; first += PART) {
      await post(["datasets", this.rows.id, "drafts"], { accept: [], reject: rejected.slice(first, first + PART), by: this.rows.by }).catch((error) => this.rows.failed(error));
    }
    for (const item of items) this.reviewing.delete(item);
    await this.load().catch((error) => this.rows.failed(error));
    for (const item of this.texts.keys()) if (!this.drafts.has(item) && !this.reviewing.has(item)) this.texts.delete(item);
  }
}
