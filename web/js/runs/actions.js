// What can be asked of a run, by which button, and the questions that come before. List, run view and node panel share it.
import { app } from "../../../../scripts/app.js";
import { ask, toast } from "../dialog.js";
import { el } from "../dom.js";
import { post } from "../server.js";
import { t } from "../text.js";
import { atWork, load, request, runOf } from "./store.js";

const ICONS = {
  pause: "pause", stop: "stop", save: "save", sample: "image", resume: "play", yield: "forward", continue: "play",
  rename: "pencil", remove: "trash", folder: "folder-open",
};

/** What a run can be asked now, the most used first. */
export function offered(run) {
  if (!run) return [];
  if (run.state === "running" && atWork(run)) return ["pause", "save", ...(run.previews ? ["sample"] : []), "stop"];
  if (run.state === "queued" && atWork(run)) return ["pause", "stop"];
  if (run.state === "paused" && run.owner) return ["continue", "stop"]; // its process waits
  return run.resumable ? ["resume"] : [];
}

/** The rarer ones, for menus. */
export function further(run) {
  return [
    ...(run.state === "running" && run.here ? ["yield"] : []),
    ...(atWork(run) ? [] : ["rename", "remove"]),
    "folder",
  ];
}

/** The label of an action for a run. */
export function labelOf(action, run) {
  return t(action === "resume" && run?.step === 0 ? "runs.start" : `runs.${action}`);
}

/** A button for an action; only an icon if `small`. */
export function buttonOf(action, name, { small = false, after = () => {} } = {}) {
  const label = labelOf(action, runOf(name));
  const button = el("button", {
    class: small ? `lf-icon pi pi-${ICONS[action]}` : "lf-button", type: "button", title: t(`runs.${action}_told`), ariaLabel: `${label}: ${name}`,
    dataset: { action },
  }, small ? null : label);
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    button.disabled = true;
    await act(action, name);
    button.disabled = false;
    after();
  });
  return button;
}

/** Does an action; what goes wrong is told in the corner of the page. */
export async function act(action, name) {
  try {
    await (ACTIONS[action] ?? ((one) => request(one, action)))(name);
    return true;
  } catch (error) {
    toast(app, "error", `${labelOf(action, runOf(name))}: ${error.message}`, 8000);
    if (error.status) load(); // what was shown is not so
    return false;
  }
}

const ACTIONS = { resume, rename, remove, yield: (name) => request(name, "pause", { go_on: true }), folder: (name) => post(["runs", name, "open"]) };

/** Goes on with a run. If something that training depends on has changed, asks what to do. */
async function resume(name) {
  try {
    await post(["runs", name, "resume"]);
  } catch (error) {
    if (error.status !== 409 || !error.told?.changed?.length) throw error;
    const accept = await askChanged(t("runs.changed_title", { name }), error.told);
    if (accept !== null) await post(["runs", name, "resume"], { accept });
  }
}

/**
 * Asks what to do about changes: true to go on with the new values, false for a new run, null for neither.
 *
 * @param {string} title
 * @param {{changed: Array<{name: string, before?: string, now: string, acceptable?: boolean}>, new_name?: string,
 *     may_go_on?: boolean}} told without `before`, `now` is a sentence
 */
export function askChanged(title, { changed, new_name: newName, may_go_on: mayGoOn = changed.every((one) => one.acceptable !== false) }) {
  const rows = changed.map(({ name, before, now }) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, before ? `${before} → ${now}` : String(now))));
  return ask(title, [el("p", {}, t("runs.changed")), el("table", { class: "lf-changes" }, el("tbody", {}, rows))], [
    ...(mayGoOn ? [{ label: t("runs.go_on"), value: true, kind: "primary", title: t("runs.go_on_told") }] : []),
    { label: newName ? t("runs.new_run", { name: newName }) : t("runs.a_new_run"), value: false, title: t("runs.new_run_told") },
  ]);
}

async function rename(name) {
  const field = el("input", { type: "text", value: name, ariaLabel: t("runs.name"), maxLength: 100 });
  const wanted = await ask(t("runs.rename_title", { name }), [field], [{ label: t("runs.rename"), value: () => field.value.trim(), kind: "primary" }]);
  if (wanted && wanted !== name) await post(["runs", name, "rename"], { name: wanted });
}

async function remove(name) {
  const sure = await ask(t("runs.remove_title", { name }), [el("p", {}, t("runs.remove_asks"))], [
    { label: t("runs.remove"), value: true, kind: "danger" },
  ]);
  if (!sure) return;
  await post(["runs", name, "delete"]);
  toast(app, "success", t("runs.removed", { name }));
}
