// The folder of Load Dataset: picked from those that there are, or filled by dropping pictures onto the node; all of its
// pictures with their captions, which are edited in their place.
import { app } from "../../../../scripts/app.js";
import { el, loadStyles } from "../dom.js";
import { get, post } from "../server.js";
import { t } from "../text.js";
import { fit } from "./room.js";

export const FOLDER = "foundry_folder";
const TYPE = "FoundryLoadDataset";
const PREVIEW = "$$canvas-image-preview"; // what the page shows of a result
const EDGE = 80; // pixels of a picture
const LEAST = 190; // height of it all
const views = new WeakMap();

/** Has the nodes of the type show their folders. */
export function followFolder(nodeType, nodeData) {
  if (nodeData.name !== TYPE) return;
  const { onConfigure, onRemoved, addCustomWidget } = nodeType.prototype;
  Object.assign(nodeType.prototype, {
    onConfigure() {
      onConfigure?.apply(this, arguments);
      views.get(this)?.soon();
    },
    onRemoved() {
      onRemoved?.apply(this, arguments);
      views.get(this)?.close();
    },
    addCustomWidget(widget) {
      const added = addCustomWidget.apply(this, arguments);
      if (widget.name === PREVIEW) views.get(this)?.hidePreview();
      return added;
    },
    onDragOver: (event) => Boolean(event.dataTransfer?.types.includes("Files")),
    onDragDrop(event) {
      return views.get(this)?.dropped(event) ?? false;
    },
  });
}

/** Puts the folder's pictures on a new node. */
export function addFolder(node) {
  if (node.comfyClass === TYPE) views.set(node, new FolderView(node));
}

class FolderView {
  constructor(node) {
    this.node = node;
    this.folder = node.widgets.find((widget) => widget.name === "folder");
    this.sets = [];
    this.set = null; // the one that is shown
    const { callback } = this.folder;
    this.folder.callback = (...args) => {
      callback?.apply(this.folder, args);
      this.soon();
    };
    this.select = el("select", { ariaLabel: t("nodes.choose"), title: t("nodes.choose"), on: { change: () => this.choose(this.select.value), focus: () => this.list() } });
    this.status = el("div", { class: "lf-status", role: "status", hidden: true });
    this.place = el("div", { class: "foundry-pictures" });
    this.buttons = el("div", { class: "lf-row" }, this.select);
    this.element = el("div", { class: "lf-data foundry-folder" }, this.buttons, this.status, this.place);
    for (const event of ["keydown", "keyup", "paste", "copy", "cut", "wheel"]) {
      this.element.addEventListener(event, (happened) => happened.stopPropagation()); // they are not for the graph
    }
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => LEAST };
    node.addDOMWidget(FOLDER, FOLDER, this.element, options).serialize = false;
    this.soon();
  }

  /** Shows the folder that the widget names, once all that happens now has happened. */
  soon() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.node.graph && this.show().catch((error) => this.tell(error.message, true)), 50);
  }

  async show() {
    if (!this.parts) await this.load();
    if (!this.sets.length) await this.list();
    const named = String(this.folder.value).trim().replaceAll("\\", "/").replace(/\/+$/, "");
    let set = this.sets.find((one) => one.folder === named);
    if (!set && named && (await this.list())) set = this.sets.find((one) => one.folder === named);
    this.fillSelect(set);
    if (set?.id !== this.set?.id || !set) await this.showSet(set ?? null);
  }

  /** Loads what only this node needs, and makes what it is needed for. */
  async load() {
    const [{ Grid }, { Rows }, upload] = await Promise.all([import("../datasets/grid.js"), import("../datasets/rows.js"), import("../datasets/upload.js")]);
    if (this.parts) return;
    this.parts = { Grid, Rows, upload };
    loadStyles("datasets");
    const take = (files) => this.take(files);
    upload.dropZone(this.element, take);
    this.edit = el("button", { type: "button", disabled: true, on: { click: () => this.openEditor() } }, t("nodes.edit"));
    this.buttons.append(...upload.picker("data.add_files", false, take), ...upload.picker("data.add_folder", true, take), this.edit);
  }

  /** Asks which folders there are; false if that failed. */
  async list() {
    try {
      this.sets = (await get(["datasets"])).datasets;
      this.fillSelect(this.set);
      return true;
    } catch (error) {
      this.tell(error.message, true);
      return false;
    }
  }

  fillSelect(set) {
    const option = (one) => el("option", { value: one.folder, selected: one.id === set?.id }, `${one.name} (${one.pictures + one.clips})`);
    const other = !set && el("option", { value: "", selected: true, disabled: true }, t("nodes.choose"));
    this.select.replaceChildren(...[other, ...this.sets.map(option)].filter(Boolean));
  }

  choose(folder) {
    app.canvas.emitBeforeChange();
    this.folder.value = folder;
    this.folder.callback(folder, app.canvas, this.node);
    app.canvas.emitAfterChange();
  }

  async showSet(set) {
    const { Grid, Rows } = this.parts;
    this.grid?.close();
    this.rows?.close();
    this.set = set;
    this.edit.disabled = !set;
    this.hidePreview();
    this.place.replaceChildren();
    this.tell(set ? "" : t("nodes.notListed"));
    if (!set) return;
    const rows = new Rows(set.id);
    const grid = new Grid(rows, (row) => (row.own ? [] : [["missing", t("data.badge_missing"), t("data.no_caption")]]));
    Object.assign(this, { rows, grid });
    grid.edge = EDGE;
    grid.addEventListener("need", ({ detail }) => rows.need(...detail));
    rows.addEventListener("rows", ({ detail }) => grid.refresh(detail));
    rows.addEventListener("failed", ({ detail }) => this.tell(detail.message, true));
    this.place.append(grid.root);
    await rows.open().catch((error) => this.tell(error.message, true));
  }

  /** The page's own few pictures would show the same ones again. */
  hidePreview() {
    const hidden = Boolean(this.set) && !this.node.inputs.some((input) => input.name === "images" && input.link !== null);
    this.node.hideOutputImages = hidden;
    const preview = this.node.widgets.find((widget) => widget.name === PREVIEW);
    if (!preview) return;
    preview.hidden = preview.options.hidden = hidden;
    fit(this.node);
  }

  async openEditor() {
    const { openEditor } = await import("../datasets/editor.js");
    await openEditor(this.set);
    await this.rows.again();
    await this.list();
  }

  /** Files that were dropped on the node beside its pictures. */
  dropped(event) {
    if (!this.parts) return false;
    this.parts.upload.droppedFiles(event.dataTransfer).then((files) => files.length && this.take(files));
    return true;
  }

  /** Uploads files: a folder becomes a data set of its name, single files go into the one that is shown. */
  async take(files) {
    const { commonFolder, isUsed, upload, uploaded } = this.parts.upload;
    if (!files.some(({ file }) => isUsed(file.name))) return this.tell(t("nodes.noPictures"), true);
    try {
      const around = commonFolder(files);
      const name = around ?? t("data.new_default");
      const named = () => this.sets.find((one) => one.upload === name);
      const set = (!around && this.set?.upload ? this.set : named()) ?? (await post(["datasets"], { name }));
      const result = await upload(set, files, (done, of) => this.tell(t("data.uploading", { done, of })));
      await this.list();
      if (this.folder.value !== set.folder) this.choose(set.folder);
      else await this.rows?.again();
      await this.show();
      this.tell(uploaded(result), result.failed.length > 0);
    } catch (error) {
      this.tell(error.message, true);
    }
  }

  tell(text, wrong = false) {
    this.status.textContent = text;
    this.status.hidden = !text;
    this.status.classList.toggle("lf-wrong", wrong);
  }

  close() {
    clearTimeout(this.waiting);
    this.grid?.close();
    this.rows?.close();
  }
}
