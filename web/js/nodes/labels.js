// What the pictures on a node are, a line each in their order, below them. ComfyUI draws the pictures: on the canvas as the
// node's last widget, which this one follows; with Nodes 2.0 below all widgets, where the lines are put by hand.
import { el } from "../dom.js";
import { t } from "../text.js";
import { fit } from "./room.js";

const WIDGET = "foundry_labels";
const LINE = 15; // pixels, before there is anything to measure
const PICTURES = ".lg-node-content"; // of Nodes 2.0

/** Shows labels, `[{prompt, drawn_by: "base" | "LoRA", step}]`, in place of those before. */
export function showLabels(node, labels = []) {
  const known = node.widgets?.find((one) => one.name === WIDGET);
  if (!known && !labels.length) return;
  const { list, place } = (known ?? addLabels(node)).foundry;
  list.replaceChildren(...labels.map((one) => el("li", { dir: "auto", title: one.prompt }, el("b", {}, nameOf(one)), " ", one.prompt)));
  list.hidden = !labels.length;
  place();
  fit(node);
}

/** Keeps the labels below a picture that the page has put on a node. */
export function keepLabelsLast(node) {
  const at = node.widgets?.findIndex((one) => one.name === WIDGET) ?? -1;
  if (at >= 0) node.widgets.push(...node.widgets.splice(at, 1));
}

function nameOf({ drawn_by: by, step }) {
  return by === "base" ? t("timeline.base") : `LoRA, ${t("timeline.step", { step })}`;
}

function addLabels(node) {
  const list = el("ol", { class: "lf-labels" });
  const element = el("div", { class: "lf-labels-place" }, list);
  const height = () => (list.hidden || list.parentNode !== element ? 0 : (list.offsetHeight || LINE * list.children.length) + 8);
  const options = { serialize: false, hideOnZoom: false, margin: 0, getMinHeight: height, getMaxHeight: height };
  const widget = node.addDOMWidget(WIDGET, WIDGET, element, options);
  widget.serialize = false; // a saved workflow keeps widgets' values by position: this one must not count

  let body = null;
  const place = () => {
    const now = window.LiteGraph.vueNodesMode ? document.querySelector(`[data-node-id="${node.id}"]`) : null;
    if (now !== body) {
      watcher.disconnect();
      body = now;
      if (body) watcher.observe(body, { childList: true, subtree: true });
    }
    const pictures = body?.querySelector(PICTURES)?.parentElement ?? element;
    if (pictures !== list.parentNode) pictures.append(list);
  };
  const watcher = new MutationObserver(place); // the page makes what is around the pictures anew
  new ResizeObserver(() => fit(node)).observe(list); // a narrower node breaks its lines elsewhere
  widget.foundry = { list, place };
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    watcher.disconnect();
    return removed?.apply(this, args);
  };
  return widget;
}
