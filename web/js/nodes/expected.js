// In our workflows, a node that gives pictures shows what to expect of it until it has given some.
import { el } from "../dom.js";
import { t } from "../text.js";
import { fit } from "./room.js";

const WIDGET = "foundry_expected"; // also the node's property: the name of a file in web/pictures

/** Has the nodes of a type show what to expect. */
export function showExpected(nodeType) {
  const { onConfigure, onExecuted } = nodeType.prototype;
  nodeType.prototype.onConfigure = function () {
    onConfigure?.apply(this, arguments);
    const name = this.properties[WIDGET];
    if (/^\w+$/.test(name ?? "") && !found(this)) addExpected(this, name);
  };
  nodeType.prototype.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    const widget = output?.images?.length && found(this);
    if (!widget) return;
    widget.onRemove?.();
    this.widgets.splice(this.widgets.indexOf(widget), 1);
    fit(this);
  };
}

function found(node) {
  return node.widgets?.find((widget) => widget.name === WIDGET);
}

function addExpected(node, name) {
  const src = new URL(`../../pictures/${name}.jpg`, import.meta.url).href;
  const picture = el("img", { src, alt: "", draggable: false, on: { load: () => fit(node) } });
  const element = el("figure", { class: "foundry-expected" }, el("figcaption", {}, t("nodes.expected")), picture);
  const height = () => 24 + (picture.naturalWidth ? ((node.size[0] - 24) * picture.naturalHeight) / picture.naturalWidth : 0);
  const options = { serialize: false, hideOnZoom: false, margin: 0, getMinHeight: height, getMaxHeight: height };
  node.addDOMWidget(WIDGET, WIDGET, element, options).serialize = false;
}
