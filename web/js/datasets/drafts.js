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
    const { drafts } = await get(["datasets", this.rows.id, "drafts"]);
    this.drafts = new Map(drafts.map((draft) => [draft.item, draft]));
    this.draw();
    this.dispatchEvent(new Event("drafts"));
  }

  progress({ done, of, error }) {
    this.state.textContent = error ?? (done === of ? "" : t("data.captioning", { done, of }));
  }

  draw() {
    const shown = [...this.drafts.values()].slice(0, SHOWN);
    this.acceptAll.disabled = this.rejectAll.disabled = !shown.length;
    this.list.replaceChildren(...shown.map((draft) => this.entry(draft)));
    if (!shown.length) this.list.append(el("p", { class: "lf-hint" }, t("data.no_drafts")));
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

  /** Accepts drafts, as they have been edited, and rejects others. */
  async review(accepted, rejected) {
    await this.rows.accept(accepted.filter((item) => this.rows.of(item)), (item) => this.texts.get(item) ?? this.drafts.get(item).caption);
    for (let first = 0; first < rejected.length; first += PART) {
      await post(["datasets", this.rows.id, "drafts"], { accept: [], reject: rejected.slice(first, first + PART) }).catch((error) => this.rows.failed(error));
    }
    for (const item of [...accepted, ...rejected]) this.texts.delete(item);
    await this.load().catch((error) => this.rows.failed(error));
    (this.list.querySelector("textarea") ?? this.list).focus();
  }
}
