// What ComfyUI's page does not do by itself: the curve of the loss on the node that trains, texts of nodes whose results come
// from the cache, and LoRA lists that know new files. Live progress, text and samples are ComfyUI's own messages.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const PANEL = "foundry_panel";
const LIVE_TEXT = "$$node-text-preview"; // the page's own widget for progress texts
const CURVE = { width: 300, height: 60, margin: 3 };
const LINE_HEIGHT = 15;
const SVG = "http://www.w3.org/2000/svg";

/** The node of an execution id such as "5", or "12:5" for node 5 in subgraph node 12. */
function nodeOf(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(executionId).split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? graph?.getNodeById?.(part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

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

function makePanel(node) {
  const text = document.createElement("div");
  text.style.cssText = `white-space:pre-wrap;overflow:hidden;font-size:11px;line-height:${LINE_HEIGHT}px;padding:0 4px`;
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
  box.append(svg, text);
  const height = () =>
    (svg.style.display === "none" ? 0 : CURVE.height + 4) +
    (text.textContent ? LINE_HEIGHT * text.textContent.split("\n").length + 4 : 0);
  const widget = node.addDOMWidget(PANEL, PANEL, box, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false; // a saved workflow keeps widgets' values by position: this one must not count
  widget.foundry = { text, svg, line };
  const before = node.widgets.findIndex((other) => other.name.startsWith("$$"));
  if (before >= 0) node.widgets.splice(before, 0, node.widgets.pop()); // above the page's own previews
  return widget;
}

function panelOf(node) {
  return node.widgets?.find((widget) => widget.name === PANEL) ?? makePanel(node);
}

/** Makes room, but never takes any away from a node that the user has sized. */
function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas?.(true, true);
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

function showText(node, text) {
  const live = node.widgets?.find((widget) => widget.name === LIVE_TEXT);
  if (live) {
    live.value = text;
    return;
  }
  const element = panelOf(node).foundry.text;
  if (element.textContent === text) return;
  element.textContent = text;
  fit(node);
}

app.registerExtension({
  name: "LoRAFoundry",
  setup() {
    api.addEventListener("lora_foundry.progress", ({ detail }) => showLosses(nodeOf(detail.node), detail.losses));
    // what the key R does, without its pop-up message where the page can do so
    api.addEventListener("lora_foundry.saved", () => (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app));
  },
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Foundry")) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.text?.length) showText(this, output.text.join("\n"));
      showLosses(this, output?.losses);
    };
  },
});
