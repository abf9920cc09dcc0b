// The sidebar tab "LoRA Foundry": the list of runs, one run, and the data sets.
import { el } from "../dom.js";
import { t } from "../text.js";
import { makeList } from "./list.js";

const VIEWS = ["runs", "data"];
let last = { view: "runs", run: null }; // where the tab was when it was closed
let showing = null; // the open tab

/** Shows a run, now or when the tab is opened. */
export function goTo(name) {
  last = { view: "runs", run: name };
  showing?.("runs", name);
}

/** Draws the tab into a container; gives what ends it. */
export function showSidebar(container) {
  let ended = () => {};
  const body = el("div", { class: "lf-body" });
  const tabs = VIEWS.map((view) =>
    el("button", { class: "lf-view", role: "tab", type: "button", dataset: { view }, on: { click: () => show(view) } }, t(`views.${view}`)),
  );
  const bar = el("div", { class: "lf-views", role: "tablist", ariaLabel: t("title") }, tabs);
  const root = el("div", { class: "lf-sidebar" }, bar, body);
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
    event.stopPropagation();
  });

  async function show(view, run = null, back = null) {
    ended();
    ended = () => {};
    last = { view, run };
    for (const tab of tabs) {
      const chosen = tab.dataset.view === view;
      tab.ariaSelected = String(chosen);
      tab.tabIndex = chosen ? 0 : -1;
    }
    body.replaceChildren();
    const asked = last;
    const shown = view === "data" ? await dataSets(body) : run ? await oneRun(run) : runsList(back);
    if (asked !== last) return shown?.destroy?.(); // another view was chosen meanwhile
    ended = () => shown?.destroy?.();
    if (shown?.element) body.replaceChildren(shown.element);
    shown?.ready?.();
  }

  function runsList(back) {
    const list = makeList((name) => show("runs", name));
    return { ...list, ready: () => back && list.focus(back) };
  }

  async function oneRun(name) {
    const { makeRun } = await import("./run.js");
    return makeRun(name, { back: () => show("runs", null, name), open: (other) => show("runs", other) });
  }

  container.replaceChildren(root);
  drops(root);
  showing = show;
  show(last.view, last.run);
  return () => {
    if (showing === show) showing = null;
    ended();
    root.remove();
  };
}

async function dataSets(body) {
  try {
    const { show } = await import("../datasets/index.js");
    const ended = await show(body);
    return { destroy: typeof ended === "function" ? ended : undefined };
  } catch (error) {
    return { element: el("p", { class: "lf-note" }, error.message) };
  }
}

/** Files of other trainers that are dropped on the tab are read. */
function drops(root) {
  const files = (event) => event.dataTransfer?.types?.includes("Files");
  root.addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    root.classList.add("lf-drop");
  });
  root.addEventListener("dragleave", () => root.classList.remove("lf-drop"));
  root.addEventListener("drop", async (event) => {
    root.classList.remove("lf-drop");
    if (!files(event) || event.defaultPrevented) return; // a view of its own took it
    event.preventDefault();
    event.stopPropagation();
    const given = [...event.dataTransfer.files];
    const { importFiles } = await import("./import.js");
    importFiles(given);
  });
}
