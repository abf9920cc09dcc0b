// The panel on Train LoRA: the run that trains there, or the latest of its name, as the store knows it. Other nodes are
// never touched, whatever their ids.
import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";
import { makeChart } from "../chart.js";
import { toast } from "../dialog.js";
import { el } from "../dom.js";
import { showLabels } from "../nodes/labels.js";
import { fit } from "../nodes/room.js";
import { nodeOf, showText } from "../nodes/texts.js";
import { t } from "../text.js";
import { askChanged, labelOf } from "./actions.js";
import { chip, facts, stateOf } from "./look.js";
import { watchCurves } from "./metrics.js";
import { atWork, load, request, runOf, runs, subscribe, wordsOf } from "./store.js";

const TYPE = "FoundryTrainLoRA";
const PANEL = "foundry_panel";
const [GO_ON, NEW_RUN] = ["go on with the new values", "start a new run"];
const NO_NODE = "9000000";
const CHART_HEIGHT = 110;
const MARGIN = 6;
const ANSWER = 6000; // milliseconds for which a button says what came of it
const HEAD_HEIGHT = 24;
const BUTTONS_HEIGHT = 28;
/** Which buttons a run in a state has. */
const OFFERED = { queued: ["pause"], running: ["pause", "save", "sample"], paused: ["resume"], crashed: ["resume"] };

/** Keeps the panels right; `open` opens a run in the sidebar. */
export function startPanels(open) {
  subscribe(({ changed, gone }) => refresh([...changed, ...gone], open));
  api.addEventListener("lora_foundry.progress", ({ detail }) => {
    const { node: id, prompt_id, shown: output, run, answered } = detail;
    const node = nodeOf(id);
    if (!isHere(runOf(run), node, id)) return;
    tellAnswers(node, answered);
    if (!output) return;
    // previews as if they were results already: only these can be animated
    api.dispatchCustomEvent("executed", { node: id, display_node: id, prompt_id, output });
  });
  api.addEventListener("lora_foundry.changed", ({ detail }) => isOpen(detail.workflow) && decide(nodeOf(detail.node), detail));
  return {
    refresh() {
      refresh(null, open);
      setTimeout(labelAgain); // the page gives a workflow that comes back its pictures after this
    },
  };
}

/** Gives a new node a panel once there is a run of its name, whatever that is changed to. */
export function addPanel(node) {
  const widget = node.comfyClass === TYPE && node.widgets?.find((one) => one.name === "name");
  if (!widget) return;
  const { callback } = widget;
  widget.callback = function (...given) {
    callback?.apply(this, given);
    refreshNode(node);
  };
  queueMicrotask(() => refreshNode(node)); // its values come after this
}

/** What a node that trains gave: what its pictures are, and its text, which stays until its run changes. */
export function showResult(node, output) {
  if (node.type !== TYPE) return;
  if (output?.labels) showLabels(node, output.labels);
  if (!output?.text?.length) return;
  node.foundryResult = { run: output.run?.[0] ?? null, text: output.text.join("\n") };
  refreshNode(node);
}

/** Says what the pictures are that a workflow had before another was looked at. */
function labelAgain() {
  for (const [node, id] of trainNodes()) showLabels(node, app.nodeOutputs?.[id]?.labels);
}

/** What becomes of a run whose settings have changed: the node is queued once more with the choice, its widget stays. */
async function decide(node, told) {
  const widget = node?.type === TYPE && node.widgets.find((one) => one.name === "if_settings_changed");
  if (!widget) return;
  const goOn = await askChanged(t("runs.changed_title", { name: node.widgets.find((one) => one.name === "name")?.value ?? node.title }), told);
  if (goOn === null) return;
  const before = widget.value;
  widget.value = goOn ? GO_ON : NEW_RUN;
  await app.queuePrompt(0).finally(() => (widget.value = before));
}

// which run

/** All Train LoRA nodes of the open workflow with their execution ids, such as "5", or "12:5" in subgraph node 12. */
function* trainNodes(graph = app.rootGraph ?? app.graph, prefix = "") {
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    if (node.type === TYPE) yield [node, `${prefix}${node.id}`];
    if (node.subgraph) yield* trainNodes(node.subgraph, `${prefix}${node.id}:`);
  }
}

function idOf(node) {
  for (const [one, id] of trainNodes()) if (one === node) return id;
  return String(node.id);
}

/** Whether a run trains on a node of the open workflow, and not on one with the same id of another. */
function isHere(run, node, id) {
  return Boolean(run && node?.type === TYPE && run.node === id && isOpen(run.workflow));
}

/**
 * Has results of trainings land on their own nodes: the page gives them to whichever node of the open workflow has the id.
 * To be called before the page listens itself.
 */
export function guardResults() {
  api.addEventListener("executed", ({ detail }) => {
    const [run, id] = [detail.output?.run?.[0], detail.display_node || detail.node];
    if (!run) return;
    const node = nodeOf(id);
    if (node?.type !== TYPE || !(isOpen(detail.output.workflow?.[0]) || runFor(node, id)?.name === run)) detail.display_node = NO_NODE;
  });
}

function isOpen(workflow) {
  return Boolean(workflow) && workflow === (app.rootGraph ?? app.graph)?.id;
}

function runFor(node, id) {
  for (const run of runs.values()) if (isHere(run, node, id) && atWork(run)) return run;
  const widget = node.widgets?.find((one) => one.name === "name");
  const name = typeof widget?.value === "string" ? widget.value.trim() : "";
  if (!name) return null;
  const numbered = (run) => run.name === name || (run.name.startsWith(`${name}_`) && /^\d+$/.test(run.name.slice(name.length + 1)));
  const found = [...runs.values()].filter(numbered);
  return found.reduce((latest, run) => (!latest || (run.created ?? 0) > (latest.created ?? 0) ? run : latest), null);
}

// the panel

let openRun = () => {};

function refresh(names, open) {
  openRun = open;
  for (const [node] of trainNodes()) refreshNode(node, names);
}

function refreshNode(node, names = null) {
  const run = runFor(node, idOf(node));
  const panel = node.widgets?.find((widget) => widget.name === PANEL)?.foundry;
  if (!run && !panel && !node.foundryResult) return;
  if (names && panel && run?.name === panel.run && !names.includes(panel.run)) return;
  show(node, panel ?? makePanel(node), run);
}

function show(node, panel, run) {
  const before = panel.height();
  if (panel.run !== (run?.name ?? null)) {
    panel.run = run?.name ?? null;
    panel.unwatch();
    panel.curves = panel.answered = null;
    panel.unwatch = run ? watchCurves(run.name, (curves) => drawn(node, panel, curves)) : () => {};
  }
  panel.head.hidden = !run;
  panel.head.replaceChildren(
    ...(run ? [chip(run), el("button", { class: "lf-run-link", type: "button", title: t("panel.open"), on: { click: () => openRun(run.name) } }, run.name)] : []),
  );
  const offered = run ? (OFFERED[stateOf(run)] ?? []).filter((action) => action !== "sample" || run.previews) : [];
  if (panel.offered !== offered.join()) {
    panel.offered = offered.join();
    panel.row.replaceChildren(...offered.map((action) => makeButton(node, panel, action)));
    panel.row.hidden = !offered.length;
  }
  showText(node, textOf(node, run));
  if (before !== panel.height()) fit(node);
}

/** The server's own words while it trains; then what the node gave, or what the run's folder says. */
function textOf(node, run) {
  const result = node.foundryResult;
  if (!run) return result?.text ?? "";
  const live = atWork(run) ? wordsOf(run.name) : null;
  if (live) return live;
  if (result && result.run === run.name && run.state === "finished") return result.text;
  const told = ["paused", "stopped", "crashed"].includes(stateOf(run)) ? t(`panel.${stateOf(run)}`) : null;
  return [facts(run).join(" · "), told, run.error].filter(Boolean).join("\n");
}

function drawn(node, panel, curves) {
  const before = panel.height();
  panel.curves = curves;
  panel.chart.element.hidden = curves.train.steps.length < 2;
  panel.chart.show([{ name: panel.run, ...curves }]);
  if (before !== panel.height()) fit(node);
}

/** Has the buttons say at which step the run has done what somebody asked for. */
function tellAnswers(node, answered) {
  const panel = node.widgets?.find((widget) => widget.name === PANEL)?.foundry;
  if (!panel) return;
  const before = panel.answered;
  panel.answered = answered;
  for (const [action, step] of Object.entries(before ? answered : {})) {
    const button = before[action] !== step && panel.row.querySelector(`[data-action="${action}"]`);
    if (!button) continue;
    button.textContent = t(`panel.${action}_done`, { step });
    clearTimeout(panel.telling[action]);
    panel.telling[action] = setTimeout(() => (button.textContent = labelOf(action)), ANSWER);
  }
}

function makePanel(node) {
  const head = el("div", { class: "lf-panel-head", hidden: true });
  const row = el("div", { class: "lf-panel-row", hidden: true });
  const chart = makeChart({ compact: true });
  chart.element.hidden = true;
  chart.element.style.height = `${CHART_HEIGHT}px`;
  const box = el("div", { class: "lf-panel" }, head, row, chart.element);
  const height = () =>
    2 * MARGIN + (head.hidden ? 0 : HEAD_HEIGHT) + (row.hidden ? 0 : BUTTONS_HEIGHT) + (chart.element.hidden ? 0 : CHART_HEIGHT + 4);
  const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: height, getMaxHeight: height };
  const widget = node.addDOMWidget(PANEL, PANEL, box, options);
  widget.serialize = false; // a saved workflow keeps widgets' values by position: this one must not count
  widget.foundry = { head, row, chart, height, run: null, offered: "", curves: null, answered: null, telling: {}, unwatch: () => {} };
  const before = node.widgets.findIndex((other) => other.name.startsWith("$$"));
  if (before >= 0) node.widgets.splice(before, 0, node.widgets.pop()); // above the page's own previews
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    widget.foundry.unwatch();
    chart.destroy();
    return removed?.apply(this, args);
  };
  return widget.foundry;
}

function makeButton(node, panel, action) {
  const button = el("button", { class: "lf-button", type: "button", title: t(`panel.${action}_told`), dataset: { action } }, labelOf(action));
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      if (action === "resume") await app.queuePrompt(0);
      else await request(panel.run, action);
      if (action === "pause") return; // takes until the step is done and saved; the next state brings other buttons
    } catch (error) {
      toast(app, "error", `${labelOf(action)}: ${error.message}`, 8000);
      if (error.status) load(); // what was shown is not so
    }
    setTimeout(() => (button.disabled = false), 500);
  });
  return button;
}
