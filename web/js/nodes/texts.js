// What a node says: progress while it works and its result, whole and with its lines. The page's own text below a node is cut
// after a few lines, and with Nodes 2.0 reads the text as Markdown; on our nodes this one stands in for it.
import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";
import { el } from "../dom.js";
import { keepLabelsLast } from "./labels.js";
import { fit } from "./room.js";

const WIDGET = "foundry_text";
const PAGES_OWN = "$$node-text-preview";
const MOST = 360; // pixels; a longer text scrolls
const HAS_PANEL = "FoundryTrainLoRA"; // says its texts by itself, from the run's state (runs/panel.js)

/** Has the nodes of a type say their results, and the page say nothing beside them. */
export function sayResults(nodeType) {
  const { onExecuted, addCustomWidget } = nodeType.prototype;
  nodeType.prototype.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    if (output?.text?.length && this.comfyClass !== HAS_PANEL) showText(this, output.text.join("\n"));
  };
  nodeType.prototype.addCustomWidget = function (widget) {
    if (widget.name === PAGES_OWN) widget.hidden = widget.options.hidden = true;
    const added = addCustomWidget.apply(this, arguments);
    if (widget.name.startsWith("$$")) keepLabelsLast(this);
    return added;
  };
}

/** Shows texts of nodes at work as they come. */
export function sayProgress(isOurs) {
  api.addEventListener("progress_text", ({ detail }) => {
    const node = nodeOf(detail.nodeId);
    if (node && isOurs(node) && node.comfyClass !== HAS_PANEL) showText(node, detail.text);
  });
}

/** The node of an execution id such as "5", or "12:5" for node 5 in subgraph node 12. */
export function nodeOf(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(executionId).split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? graph?.getNodeById?.(part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** Shows a text on a node, in place of what it said before. */
export function showText(node, text) {
  const known = node.widgets?.find((one) => one.name === WIDGET);
  if (!known && !text) return;
  const widget = known ?? addText(node);
  const { firstChild: shown } = widget.element;
  if (shown.textContent === text) return;
  shown.textContent = text;
  fit(node);
}

function addText(node) {
  const shown = el("div");
  const element = el("div", { class: "foundry-text", role: "status" }, shown);
  const height = () => Math.min(MOST, shown.offsetHeight || 15 * shown.textContent.split("\n").length) + 8;
  const options = { serialize: false, hideOnZoom: false, margin: 0, getMinHeight: height, getMaxHeight: height };
  const widget = node.addDOMWidget(WIDGET, WIDGET, element, options);
  widget.serialize = false; // a saved workflow keeps widgets' values by position: this one must not count
  new ResizeObserver(() => fit(node)).observe(shown); // a narrower node breaks its lines elsewhere
  const before = node.widgets.findIndex((other) => other.name.startsWith("$$"));
  if (before >= 0) node.widgets.splice(before, 0, node.widgets.pop()); // above the page's own previews
  return widget;
}
