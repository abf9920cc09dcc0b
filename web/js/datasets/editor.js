// The wide view of a data set, in a dialog over the graph.
import { api } from "../../../../scripts/api.js";
import { el } from "../dom.js";
import { get } from "../server.js";
import { t } from "../text.js";
import { Checks } from "./checks.js";
import { Drafts } from "./drafts.js";
import { Grid } from "./grid.js";
import { PictureView } from "./picture.js";
import { Rows } from "./rows.js";
import { button, select, Tools } from "./tools.js";
import { dropZone, picker, upload, uploaded } from "./upload.js";

const CHECKED_AT_ONCE = 300; // pictures of a set that is checked without being asked
const NEWS = "lora_foundry.dataset";

/** Opens a data set, one of `GET datasets`; resolves when the dialog is closed. */
export function openEditor(set) {
  return new Promise((closed) => new Editor(set, closed));
}

class Editor {
  constructor(set, closed) {
    this.set = set;
    this.rows = new Rows(set.id);
    this.trigger = el("input", { type: "text", placeholder: t("data.trigger"), "aria-label": t("data.trigger"), on: { input: () => this.picture.told() } });
    this.placement = select("data.placement", ["start", "end", "only_placeholder"], () => this.picture.told());
    this.grid = new Grid(this.rows, (row) => this.badges(row));
    this.tools = new Tools(this.rows, this.grid);
    this.picture = new PictureView(this.rows, () => ({ trigger: this.trigger.value.trim(), placement: this.placement.value }));
    this.checks = new Checks(set.id);
    this.drafts = new Drafts(this.rows, this.grid);
    this.summary = el("div", { class: "lf-summary" });
    this.status = el("div", { class: "lf-status", role: "status" });
    this.tabs = this.makeTabs({ picture: this.picture.root, checks: this.checks.root, drafts: this.drafts.root });
    this.dialog = el("dialog", { class: "lf-data", "aria-label": set.name },
      el("header", {}, el("h2", { dir: "auto" }, set.name), this.summary, ...this.uploads(), this.size(), button("data.close", () => this.dialog.close())),
      this.tools.root,
      el("main", {}, this.grid.root, el("aside", {}, el("div", { class: "lf-row lf-trigger" }, this.trigger, this.placement), this.tabs.bar, ...this.tabs.panels)),
      this.status);
    this.listen(closed);
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.grid.root.focus();
    this.open();
  }

  async open() {
    try {
      await this.rows.open();
      this.grid.move(0);
      await this.fill();
    } catch (error) {
      this.tell(error.message, true);
    }
  }

  /** All that can wait until there is something to look at. */
  async fill() {
    await this.grid.settled();
    this.summary.textContent = t("data.loading", { count: this.rows.total });
    await this.drafts.load();
    await this.rows.loadRest();
    if (!this.rows.closed) await this.summarize();
  }

  async summarize() {
    const summary = await get(["datasets", this.set.id]);
    const { count, clips, masks, controls, buckets, sizes, resolutions } = summary;
    if (!this.trigger.value && !this.asked) {
      this.trigger.value = summary.trigger;
      this.placement.value = summary.placement;
      this.picture.told();
    }
    this.asked = true;
    this.captioned = el("span", {}, t("data.captioned", { count: summary.captioned }));
    const parts = [t("data.count", { count: count - clips }), clips && t("data.clips", { count: clips }),
      masks && t("data.masks", { count: masks }), controls && t("data.controls", { count: controls })];
    const table = (texts) => Object.entries(texts).map(([size, number]) => `${size.replaceAll("x", " × ")}: ${number}`).join("\n");
    this.summary.replaceChildren(
      el("span", {}, parts.filter(Boolean).join(" · "), " · ", this.captioned),
      el("details", {}, el("summary", {}, t("data.sizes")), el("div", { class: "lf-sizes" },
        el("pre", {}, `${t("data.pictures_sizes")}\n${table(sizes)}`),
        el("pre", {}, `${t("data.buckets", { resolutions: resolutions.join(", ") })}\n${table(buckets)}`))));
    if (summary.problems.length) this.tell(summary.problems[0], true);
    this.checks.show(summary);
    if (!summary.findings && !summary.checking && count <= CHECKED_AT_ONCE) await this.checks.check();
  }

  listen(closed) {
    const { rows, grid, tools, checks, drafts } = this;
    rows.addEventListener("rows", ({ detail }) => {
      if (!tools.open && !detail) this.filter();
      grid.refresh(detail);
      if (!grid.editing) this.picture.show(grid.focusedRow);
      tools.showChosen();
    });
    rows.addEventListener("history", () => {
      if (this.captioned && rows.complete) this.captioned.textContent = t("data.captioned", { count: rows.rows.filter((row) => row.own).length });
    });
    rows.addEventListener("failed", ({ detail }) => this.tell(detail.message, true));
    rows.addEventListener("progress", ({ detail: [done, of] }) => this.tell(t("data.writing", { done, of })));
    grid.addEventListener("need", ({ detail }) => rows.need(...detail));
    grid.addEventListener("focused", () => this.picture.show(grid.focusedRow));
    grid.addEventListener("selected", () => tools.showChosen());
    tools.addEventListener("filter", () => this.filter());
    tools.addEventListener("told", ({ detail }) => this.tell(detail));
    checks.addEventListener("found", () => this.counted());
    checks.addEventListener("only", ({ detail }) => tools.showOnly(detail));
    for (const one of [checks, drafts]) one.addEventListener("jump", ({ detail }) => this.jump(detail));
    drafts.addEventListener("drafts", () => this.counted());
    this.picture.onleave = () => grid.root.focus();
    const news = ({ detail }) => this.heard(detail);
    api.addEventListener(NEWS, news);
    for (const event of ["keydown", "keyup", "paste", "copy", "cut"]) { // ComfyUI's own shortcuts are for the graph
      this.dialog.addEventListener(event, (happened) => happened.stopPropagation());
    }
    this.dialog.addEventListener("keydown", (event) => this.pressed(event));
    if (this.set.upload !== null) dropZone(this.dialog, (files) => this.upload(files));
    this.dialog.addEventListener("close", () => {
      grid.close();
      this.picture.close();
      rows.close();
      api.removeEventListener(NEWS, news);
      this.dialog.remove();
      closed();
    });
  }

  pressed(event) {
    const control = event.ctrlKey || event.metaKey;
    const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), textarea");
    if (!control) return;
    const key = event.key.toLowerCase();
    if (key === "f") this.tools.search.focus();
    else if (typing) return; // a field has its own undo
    else if (key === "z") event.shiftKey ? this.rows.redo() : this.rows.undo();
    else if (key === "y") this.rows.redo();
    else return;
    event.preventDefault();
  }

  filter() {
    this.grid.filter(this.tools.positions(this.drafts.drafts, this.checks.items));
    this.tools.showChosen();
  }

  /** Shows a picture, in the grid and large. */
  jump(item) {
    if (!this.grid.goTo(item)) {
      this.tools.showAll();
      this.grid.goTo(item);
    }
  }

  counted() {
    this.tabs.count("checks", this.checks.findings.filter(({ severity }) => severity !== "note").length);
    this.tabs.count("drafts", this.drafts.drafts.size);
    if (!this.tools.open) this.filter();
    this.grid.refresh();
  }

  badges(row) {
    const findings = this.checks.items.get(row.item);
    return [
      !row.own && ["missing", t("data.badge_missing"), t("data.no_caption")],
      this.drafts.drafts.has(row.item) && ["draft", t("data.badge_draft"), t("data.draft")],
      findings && ["finding", "⚠", findings.join("\n")],
      row.clip && ["clip", "▶", t("data.frames", { count: row.clip.frames })],
      row.mask && ["mask", "◐", t("data.mask")],
      row.controls > 0 && ["control", `◫${row.controls > 1 ? row.controls : ""}`, t("data.controls", { count: row.controls })],
      row.problem && ["problem", "✖", row.problem],
    ].filter(Boolean);
  }

  async heard(news) {
    if (news.id !== this.set.id || news.items || news.by === this.rows.by) return; // captions are what rows hear of
    if (news.checked) this.checks.show(await get(["datasets", this.set.id]).catch((error) => ({ error: error.message })));
    else if (news.captioning) {
      this.drafts.progress(news.captioning);
      if (news.drafts) await this.drafts.load().catch((error) => this.tell(error.message, true));
    } else if (news.drafts) await this.drafts.load().catch((error) => this.tell(error.message, true));
    else this.checks.progress(news);
  }

  uploads() {
    if (this.set.upload === null) return [];
    const take = (files) => this.upload(files);
    return [...picker("data.add_files", false, take), ...picker("data.add_folder", true, take)];
  }

  async upload(files) {
    const result = await upload(this.set, files, (done, of) => this.tell(t("data.uploading", { done, of })));
    this.tell(uploaded(result), result.failed.length > 0);
    this.grid.selection.clear();
    try {
      await this.rows.again();
      this.grid.move(0);
      await this.fill();
    } catch (error) {
      this.tell(error.message, true);
    }
  }

  size() {
    return el("input", { type: "range", min: 96, max: 384, step: 16, value: this.grid.edge, "aria-label": t("data.size"), title: t("data.size"),
      on: { input: ({ target }) => this.grid.resize(Number(target.value)) } });
  }

  makeTabs(panels) {
    const names = Object.keys(panels);
    const buttons = {};
    const show = (name) => {
      for (const one of names) {
        panels[one].hidden = one !== name;
        buttons[one].setAttribute("aria-selected", String(one === name));
        buttons[one].tabIndex = one === name ? 0 : -1;
      }
      if (name === "drafts") this.drafts.models();
    };
    const pressed = (event, name) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = names[(names.indexOf(name) + step + names.length) % names.length];
      show(next);
      buttons[next].focus();
    };
    for (const name of names) {
      buttons[name] = el("button", { type: "button", role: "tab", on: { click: () => show(name), keydown: (event) => pressed(event, name) } }, t(`data.tab_${name}`));
      panels[name].setAttribute("role", "tabpanel");
    }
    const bar = el("div", { class: "lf-tabs", role: "tablist" }, Object.values(buttons));
    show("picture");
    const count = (name, number) => { buttons[name].textContent = t(`data.tab_${name}`) + (number ? ` (${number})` : ""); };
    return { bar, panels: Object.values(panels), show, count };
  }

  tell(text, wrong = false) {
    this.status.textContent = text;
    this.status.classList.toggle("lf-wrong", wrong);
  }
}
