// The checkpoints of a run: sizes, losses, which is best and why; keeping, using and downloading them.
import { app } from "../../../../scripts/app.js";
import { toast } from "../dialog.js";
import { el } from "../dom.js";
import { number, size } from "../format.js";
import { address, post } from "../server.js";
import { t } from "../text.js";

/** The table of a run's checkpoints; `show(run)` fills it with what the server tells of the run. */
export function makeCheckpoints(name, { refresh }) {
  const element = el("section", { class: "lf-section" });
  let told = null;

  function show(run) {
    told = run;
    const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    // what was measured knows better than the lowest validation loss
    const best = run.choice?.best ?? run.checkpoints.find((one) => one.best)?.step;
    const rows = [...run.checkpoints].reverse().map((one) => row(one, one.step === best));
    element.replaceChildren(
      el("div", { class: "lf-section-head" }, el("h4", {}, t("run.checkpoints")), run.checkpoints.length ? buttons() : null),
      run.checkpoints.length
        ? el("table", { class: "lf-table" }, el("thead", {}, el("tr", {}, ["step", "size", "loss", "validation", ""].map((key) => el("th", { scope: "col" }, key && t(`run.${key}`))))), el("tbody", {}, rows))
        : el("p", { class: "lf-quiet" }, t("run.no_checkpoints")),
      ...(run.choice ? [why(run.choice)] : []),
    );
    if (focused) element.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  function buttons() {
    const compare = async () => (await import("./compare.js")).openCompare(told);
    return el("span", { class: "lf-buttons" },
      button(t("run.which"), "which", t("run.which_told"), async () => {
        await post(["runs", name, "choose"]);
        toast(app, "info", t("run.measuring"));
      }),
      button(t("run.compare"), "compare", t("run.compare_told"), compare),
    );
  }

  function row({ step, bytes, loss, validation_loss: validation, pinned, files }, best) {
    const pin = el("button", { class: `lf-icon pi pi-bookmark${pinned ? "-fill" : ""}`, type: "button", title: t(pinned ? "run.unpin" : "run.pin"), ariaLabel: `${t(pinned ? "run.unpin" : "run.pin")}: ${step}`, ariaPressed: String(pinned), dataset: { key: `pin${step}` } });
    pin.addEventListener("click", () => tried(pin, async () => (await post(["runs", name, "pin"], { step, pinned: !pinned }), refresh())));
    const downloads = files.map((file) =>
      el("a", { class: "lf-icon pi pi-download", href: address(["runs", name, "checkpoints", String(step), file]), download: "", title: `${t("run.download")}: ${file}`, ariaLabel: `${t("run.download")}: ${file}` }),
    );
    const use = button(t("run.use"), `use${step}`, t("run.use_told"), () => useCheckpoint(name, step));
    return el("tr", { class: best ? "lf-best" : "" },
      el("th", { scope: "row" }, String(step), best ? el("span", { class: "lf-star", title: t("run.best"), ariaLabel: t("run.best"), role: "img" }, " ★") : null),
      el("td", {}, size(bytes)), el("td", {}, number(loss)), el("td", {}, number(validation)),
      el("td", { class: "lf-table-buttons" }, use, pin, downloads),
    );
  }

  return { element, show };
}

function button(label, key, title, pressed) {
  const element = el("button", { class: "lf-button", type: "button", title, dataset: { key } }, label);
  element.addEventListener("click", () => tried(element, pressed));
  return element;
}

async function tried(button, work) {
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    toast(app, "error", error.message, 8000);
  }
  button.disabled = false;
}

const MEASURES = ["train_loss", "held_out", "leak", "likeness", "variety"];

/** Why a checkpoint is the best, as it was measured, and what was measured of each. */
function why({ best, reasons, alarm, notes, base, checkpoints, embedding }) {
  const item = (name) => (text) => el("li", { class: `lf-text ${name}` }, text);
  const told = [...reasons.map(item("")), ...(alarm?.reasons ?? []).map(item("lf-error-text")), ...notes.map(item("lf-quiet"))];
  const row = (one) =>
    el("tr", { class: one.step === best ? "lf-best" : "" }, el("th", { scope: "row" }, one.step || t("run.base")), MEASURES.map((name) => el("td", {}, number(one[name]))));
  return el("div", { class: "lf-why" },
    el("h4", {}, t(best === null ? "run.no_best" : "run.why", { step: best })),
    el("ul", {}, told),
    el("details", {}, el("summary", {}, t("run.measures")),
      el("table", { class: "lf-table" }, el("thead", {}, el("tr", {}, ["step", ...MEASURES].map((name) => el("th", { scope: "col", title: t(`run.${name}_told`) }, t(`run.${name}`))))), el("tbody", {}, [base, ...checkpoints].map(row))),
      embedding ? el("p", { class: "lf-quiet" }, t("run.embedding", { name: embedding })) : null));
}

/** Saves a checkpoint to models/loras and sets it, and the strength if given, in the loaders that are selected in the graph. */
export async function useCheckpoint(name, step, strength = null) {
  const { lora_name: file } = await post(["runs", name, "use"], { step });
  await (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app);
  const loaders = Object.values(app.canvas?.selected_nodes ?? {}).map((node) => [node, node.widgets?.find((widget) => widget.name === "lora_name")]);
  const set = loaders.filter(([, widget]) => widget);
  for (const [node, widget] of set) {
    widget.value = file;
    widget.callback?.(file);
    const amount = node.widgets.find((one) => one.name === "strength_model");
    if (amount && strength !== null) amount.value = strength;
    node.setDirtyCanvas?.(true, true);
  }
  toast(app, "success", t(set.length ? "run.used_in" : "run.used", { file, node: set.map(([node]) => node.title).join(", ") }));
  return file;
}
