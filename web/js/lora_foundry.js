// What ComfyUI's page does not do by itself: the curve of the loss and buttons on the node that trains, and LoRA lists that
// know new files. Live progress and samples are ComfyUI's own messages.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { register as registerNodes } from "./nodes/index.js";
import { fit } from "./nodes/room.js";
import { nodeOf } from "./nodes/texts.js";

const PANEL = "foundry_panel";
const CURVE = { width: 300, height: 60, margin: 3 };
const BUTTONS_HEIGHT = 26;
const BUTTONS = [
  { request: "pause", label: "Pause", title: "Saves, frees the GPU and ends this prompt; Resume goes on exactly." },
  { request: "save", label: "Save now", title: "Saves a checkpoint after this step." },
  { request: "sample", label: "Sample now", title: "Draws the sample prompts after this step." },
  { request: "resume", label: "Resume", title: "Queues the workflow again, which goes on where the run stopped." },
];
/** Which buttons a run in a state has. */
const OFFERED = { queued: ["pause"], running: ["pause", "save", "sample"], paused: ["resume"] };
const SVG = "http://www.w3.org/2000/svg";

/** The loss as a line over the steps, smoothed so that its trend shows through the noise of single steps. */
function curveOf(losses) {
  const smooth = [];
  for (const loss of losses) {
    smooth.push(smooth.length ? 0.85 * smooth[smooth.length - 1] + 0.15 * loss : loss);
  }
  const low = Math.min(...smooth);
  const span = Math.max(...smooth) - low || 1;
  const inner = { width: CURVE.width - 2 * CURVE.margin, height: CURVE.height - 2 * CURVE.margin };
  return smooth
    .map((loss, k) => {
      const x = CURVE.margin + (inner.width * k) / Math.max(1, smooth.length - 1);
      const y = CURVE.margin + inner.height * (1 - (loss - low) / span);
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    })
    .join(" ");
}

function enable(button, enabled) {
  button.disabled = !enabled;
  button.style.opacity = enabled ? "1" : "0.5";
}

/** Asks something of the run that trains on a node. What is wrong is told in the corner of the page. */
async function ask(node, request) {
  const panel = panelOf(node).foundry;
  const button = panel.buttons[request];
  enable(button, false);
  try {
    if (request === "resume") await app.queuePrompt(0);
    else await tell(panel.run, request);
    if (request === "pause") return; // takes until the step is done and saved; the next state brings other buttons
  } catch (error) {
    const detail = `${button.textContent}: ${error.message}`;
    app.extensionManager?.toast?.add({ severity: "error", summary: "LoRA Foundry", detail, life: 8000 });
    if (error.ended) showButtons(node, { state: "" });
  }
  setTimeout(() => enable(button, true), 500);
}

async function tell(run, request) {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ run, request });
  const answer = await api.fetchApi("/lora_foundry/tell", { method: "POST", headers, body });
  if (answer.ok) return;
  const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
  throw Object.assign(new Error(error), { ended: answer.status === 404 });
}

function makeButtons(node) {
  const row = document.createElement("div");
  row.style.cssText = `display:none;gap:4px;height:${BUTTONS_HEIGHT - 4}px;margin-bottom:4px`;
  const buttons = {};
  for (const { request, label, title } of BUTTONS) {
    const button = document.createElement("button");
    button.textContent = label;
    button.title = title;
    button.style.cssText =
      "flex:1;min-width:0;font-size:11px;padding:0 4px;cursor:pointer;border-radius:6px;white-space:nowrap;" +
      "border:1px solid var(--border-color,#555);background:var(--comfy-input-bg,#222);color:var(--input-text,#ddd)";
    button.addEventListener("click", () => ask(node, request));
    buttons[request] = button;
    row.append(button);
  }
  return { row, buttons };
}

function makePanel(node) {
  const { row, buttons } = makeButtons(node);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${CURVE.width} ${CURVE.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.cssText = `display:none;width:100%;height:${CURVE.height}px;background:rgba(0,0,0,.25);border-radius:6px`;
  const title = document.createElementNS(SVG, "title");
  title.textContent = "Loss, smoothed";
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("fill", "none");
  line.setAttribute("stroke", "#6cf");
  line.setAttribute("stroke-width", "1.5");
  line.setAttribute("vector-effect", "non-scaling-stroke");
  svg.append(title, line);
  const box = document.createElement("div");
  box.append(row, svg);
  const height = () =>
    (row.style.display === "none" ? 0 : BUTTONS_HEIGHT) +
    (svg.style.display === "none" ? 0 : CURVE.height + 4);
  const widget = node.addDOMWidget(PANEL, PANEL, box, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false; // a saved workflow keeps widgets' values by position: this one must not count
  widget.foundry = { svg, line, row, buttons, run: "", state: "" };
  const before = node.widgets.findIndex((other) => other.name.startsWith("$$"));
  if (before >= 0) node.widgets.splice(before, 0, node.widgets.pop()); // above the page's own previews
  return widget;
}

function panelOf(node) {
  return node.widgets?.find((widget) => widget.name === PANEL) ?? makePanel(node);
}

function showLosses(node, losses) {
  if (!node || !Array.isArray(losses) || losses.length < 2) return;
  const { svg, line } = panelOf(node).foundry;
  line.setAttribute("points", curveOf(losses));
  if (svg.style.display === "none") {
    svg.style.display = "block";
    fit(node);
  }
}

/** The buttons that fit the state of the run that trains on a node; none if there is no such run. */
function showButtons(node, { run, state, previews }) {
  if (!node || state === undefined) return;
  const offered = OFFERED[state] ?? [];
  if (!offered.length && !node.widgets?.some((widget) => widget.name === PANEL)) return;
  const panel = panelOf(node).foundry;
  panel.run = run ?? panel.run;
  if (panel.state === state) return;
  panel.state = state;
  for (const [request, button] of Object.entries(panel.buttons)) {
    const shown = offered.includes(request) && (request !== "sample" || previews);
    button.style.display = shown ? "block" : "none";
    enable(button, true);
  }
  const before = panel.row.style.display;
  panel.row.style.display = offered.length ? "flex" : "none";
  if (before !== panel.row.style.display) fit(node);
}

registerNodes(app);
app.registerExtension({
  name: "LoRAFoundry",
  setup() {
    api.addEventListener("lora_foundry.progress", ({ detail }) => {
      const node = nodeOf(detail.node);
      showButtons(node, detail);
      showLosses(node, detail.losses);
      // previews as if they were results already: only these can be animated
      const { node: id, prompt_id, shown: output } = detail;
      if (output) api.dispatchCustomEvent("executed", { node: id, display_node: id, prompt_id, output });
    });
    // what the key R does, without its pop-up message where the page can do so
    api.addEventListener("lora_foundry.saved", () => (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app));
  },
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Foundry")) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      showLosses(this, output?.losses);
      if (output?.losses) showButtons(this, { state: "finished" });
    };
  },
});
