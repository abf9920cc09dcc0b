// Presets fill in values: what changes is listed with its reason, and only what is ticked is written into the widgets.
import { app } from "../../../../scripts/app.js";
import { ask } from "../dialog.js";
import { el } from "../dom.js";
import { post } from "../server.js";
import { t } from "../text.js";
import { sourceOf, trainingNodes } from "./linked.js";
import { showWidgets } from "./widgets.js";

const PRESET = "FoundryPreset";
const FILLED = "foundry_filled"; // a node's property: what presets wrote into its widgets
/** Loaders whose file says what a MODEL is, before anything runs: their widget, and the folder in the models folder. */
const LOADERS = {
  CheckpointLoaderSimple: ["ckpt_name", "checkpoints"],
  UNETLoader: ["unet_name", "diffusion_models"],
};

/** Puts the button on a node. */
export function addPresetButton(node) {
  if (node.comfyClass !== PRESET && node.comfyClass !== "FoundryTrainLoRA") return;
  const button = node.addWidget("button", "foundry_fill_in", null, () => openPresets(node), { serialize: false });
  button.label = t("nodes.fillIn");
  button.serialize = false; // a saved workflow keeps widgets' values by position: this one must not count
}

/** Asks what to train, shows what would change, and changes what is ticked. */
async function openPresets(node) {
  const choices = ["subject", "vram"].map((name) => chooser(node, name));
  const [subject, vram] = choices.map(({ select }) => select);
  const told = el("p", { class: "foundry-told lf-quiet", role: "status" });
  const rows = el("tbody");
  const all = el("input", { type: "checkbox", ariaLabel: t("nodes.all"), title: t("nodes.all") });
  const heads = ["setting", "before", "after", "why"].map((name) => el("th", {}, t(`nodes.${name}`)));
  const table = el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, all), heads)), rows);
  let lines = [];
  let asked = 0;
  const boxes = () => lines.flatMap(({ box }) => box ?? []);
  const look = () => (all.checked = boxes().every((box) => box.checked));
  const show = async () => {
    const number = ++asked;
    const settings = { subject: subject.value, vram: vram.value, base: baseOf(node) };
    const values = await post(["preset"], { settings }).catch((error) => error);
    if (number !== asked) return; // another choice was made meanwhile
    const failed = values instanceof Error;
    const notes = failed ? [values.message] : values.filter((one) => one.node === PRESET).map(({ why }) => why);
    lines = failed ? [] : linesOf(node, values);
    if (!failed && !lines.length) notes.push(t("nodes.already"));
    told.textContent = notes.join("\n");
    rows.replaceChildren(...lines.map(rowOf));
    look();
  };
  for (const select of [subject, vram]) select.addEventListener("change", show);
  rows.addEventListener("change", look);
  all.addEventListener("change", () => boxes().forEach((box) => (box.checked = all.checked)));
  show();
  const chosen = () => lines.filter(({ box }) => box?.checked);
  const body = [el("div", { class: "foundry-choices" }, choices.map(({ label }) => label)), told];
  const answers = [{ label: t("nodes.apply"), value: chosen, kind: "primary" }];
  fill((await ask(t("nodes.fillIn"), [...body, el("div", { class: "foundry-presets" }, table)], answers)) ?? []);
}

/** A choice of the Preset node, as its definition has it, set as on the node. */
function chooser(node, name) {
  const preset = node.comfyClass === PRESET ? node : null;
  const [, { options, default: usual }] = window.LiteGraph.registered_node_types[PRESET].nodeData.input.required[name];
  const widget = preset?.widgets.find((one) => one.name === name);
  const items = options.map((value) => el("option", { value, selected: value === (widget?.value ?? usual) }, value));
  const select = el("select", { on: { change: () => widget && (widget.value = select.value) } }, items);
  return { select, label: el("label", {}, t(`nodes.${name}`), " ", select) };
}

/** What the server needs to know of the base: Base Model's widgets, or the file that a linked MODEL comes from. */
function baseOf(node) {
  const base = trainingNodes(node).get("FoundryQuantizeBase") ?? sourceOf(node, "base");
  const value = (name) => base?.widgets?.find((one) => one.name === name)?.value ?? null;
  let model = base && sourceOf(base, "model");
  if (!model) return { family: value("family"), source: value("source"), folder_or_repo: value("folder_or_repo") };
  while (model && !LOADERS[model.comfyClass]) model = sourceOf(model, "model");
  const [widget, folder] = LOADERS[model?.comfyClass] ?? [];
  const file = model?.widgets.find((one) => one.name === widget)?.value;
  return { family: value("family"), source: file ? `${folder}/${file}` : null };
}

/** What would change: values that differ from those of the nodes that train together. */
function linesOf(node, values) {
  const nodes = trainingNodes(node);
  const lines = [];
  for (const { node: type, widget: name, value, why } of values) {
    if (type === PRESET) continue;
    const target = nodes.get(type);
    const widget = target?.widgets.find((one) => one.name === name);
    if (widget && same(widget.value, value)) continue;
    const title = target?.title ?? window.LiteGraph.registered_node_types[type]?.title ?? type;
    const linked = target?.inputs.some((input) => input.widget?.name === name && input.link !== null);
    const why_not = widget ? linked && t("nodes.linked") : t("nodes.noNode");
    const box = why_not ? null : el("input", { type: "checkbox", checked: !setByHand(target, widget) });
    lines.push({ target, widget, name, value, why, title, why_not, box });
  }
  return lines;
}

function rowOf({ widget, name, value, why, title, why_not, box }) {
  const id = `foundry-${title}-${name}`;
  if (box) box.id = id;
  const what = box ? el("label", { htmlFor: id }, title, el("b", {}, ` ${name}`)) : [title, el("b", {}, ` ${name}`)];
  const before = why_not || shown(widget.value);
  return el("tr", { dataset: { widget: name } }, [box, what, before, shown(value), why].map((cell) => el("td", {}, cell)));
}

/** A value that is neither the widget's own nor a preset's: somebody wanted it. */
function setByHand(node, widget) {
  const { required = {}, optional = {} } = node.constructor.nodeData.input;
  const [kind, options] = { ...required, ...optional }[widget.name];
  const usual = options?.default ?? options?.options?.[0] ?? (Array.isArray(kind) ? kind[0] : undefined);
  return !same(widget.value, usual) && !same(widget.value, node.properties[FILLED]?.[widget.name]);
}

/** Writes values into widgets, as one step of ComfyUI's undo. */
function fill(lines) {
  if (!lines.length) return;
  app.canvas.emitBeforeChange();
  for (const { target, widget, value } of lines) {
    widget.value = value;
    widget.callback?.(value, app.canvas, target);
    target.properties[FILLED] = { ...target.properties[FILLED], [widget.name]: value };
    showWidgets(target);
  }
  app.canvas.emitAfterChange();
  app.canvas.setDirty(true, true);
}

function same(one, other) {
  return typeof one === "number" && typeof other === "number" ? Math.abs(one - other) <= 1e-9 * Math.abs(other) : one === other;
}

function shown(value) {
  if (value === "") return t("nodes.empty");
  if (typeof value === "boolean") return t(value ? "nodes.on" : "nodes.off");
  return String(value);
}
