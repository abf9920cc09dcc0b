// Which widgets a node shows. Rarely used ones wait behind ComfyUI's own "Show Advanced", and what would do nothing, because
// something else is off, is hidden. The values of all widgets are saved and sent, whatever is shown.
import { fit } from "./room.js";

const RULES = Symbol("rules of a node type's widgets");

/**
 * Reads from a node's definition what its widgets depend on, and has its nodes follow.
 *
 * @param {object} own options of widgets that the page adds, by name
 */
export function followRules(nodeType, nodeData, own = {}) {
  const { required = {}, optional = {} } = nodeData.input ?? {};
  const given = Object.entries({ ...required, ...optional }).map(([name, [, options]]) => [name, options]);
  const rules = new Map();
  for (const [name, options] of [...given, ...Object.entries(own)]) {
    rules.set(name, {
      advanced: options?.advanced === true,
      needs: Object.entries(options?.foundry_needs ?? {}),
      unlinked: options?.foundry_unlinked ?? [],
    });
  }
  nodeType.prototype[RULES] = rules;
  for (const event of ["onConfigure", "onConnectionsChange"]) {
    const original = nodeType.prototype[event];
    nodeType.prototype[event] = function () {
      const answer = original?.apply(this, arguments);
      showWidgets(this);
      return answer;
    };
  }
}

/** Has a new node show what its widgets' values ask for, now and when one changes. */
export function startFollowing(node) {
  for (const widget of node.widgets ?? []) {
    const { callback } = widget;
    widget.callback = function () {
      const answer = callback?.apply(this, arguments);
      showWidgets(node);
      return answer;
    };
  }
  showWidgets(node);
  node.setSize([node.size[0], node.computeSize()[1]]); // the page sized it with all widgets
}

/** Shows and hides a node's widgets by their values and the node's links; for values set by a program, too. */
export function showWidgets(node) {
  const rules = node[RULES];
  let changed = false;
  for (const widget of node.widgets ?? []) {
    if (!rules.has(widget.name)) continue;
    const linked = isLinked(node, widget.name);
    const hidden = !linked && !counts(node, widget.name);
    changed ||= hidden !== Boolean(widget.hidden);
    widget.hidden = widget.options.hidden = hidden;
    widget.advanced = rules.get(widget.name).advanced && !linked; // a link ends at something that is seen
    for (const follower of widget.linkedWidgets ?? []) follower.hidden = follower.options.hidden = hidden;
  }
  if (!changed) return;
  if (window.LiteGraph.vueNodesMode) {
    const all = [...node.widgets]; // Nodes 2.0 looks at the options again when the list changes
    node.widgets = [];
    node.widgets = all;
  }
  fit(node);
}

/** Whether a widget's value does anything. */
function counts(node, name) {
  const { needs, unlinked } = node[RULES].get(name) ?? { needs: [], unlinked: [] };
  if (unlinked.some((input) => isLinked(node, input))) return false;
  return needs.every(([other, values]) => {
    if (isLinked(node, other)) return true; // what comes over a link is not known here
    const value = node.widgets.find((widget) => widget.name === other)?.value;
    return counts(node, other) && (values === "on" ? isOn(value) : values.includes(value));
  });
}

function isOn(value) {
  return typeof value === "string" ? value.trim() !== "" : Number(value) > 0;
}

function isLinked(node, name) {
  const input = node.inputs?.find((one) => one.name === name || one.widget?.name === name);
  return input?.link !== null && input?.link !== undefined;
}
