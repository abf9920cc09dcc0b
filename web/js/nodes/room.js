// A node's height follows what it shows, and never takes away room that the user gave.
// With Nodes 2.0 the page does so itself: there a node's size is only the least that it may have.
const given = new WeakMap(); // the height that the user chose, by node
const fitting = new WeakSet();

/** Has the nodes of a type remember the height that they are given. */
export function keepRoom(nodeType) {
  const { onResize, onConfigure, getLayoutWidgets, toggleAdvanced } = nodeType.prototype;
  nodeType.prototype.onResize = function (size) {
    onResize?.apply(this, arguments);
    if (fitting.has(this)) return;
    const needed = this.computeSize()[1];
    // up to what is needed, it is the page that sized the node
    given.set(this, size[1] > needed ? size[1] : Math.min(given.get(this) ?? 0, size[1]));
  };
  nodeType.prototype.onConfigure = function (saved) {
    onConfigure?.apply(this, arguments);
    if (saved.size) given.set(this, saved.size[1]);
  };
  // the page's own layout keeps places for advanced widgets that are not shown
  nodeType.prototype.getLayoutWidgets = function () {
    const widgets = getLayoutWidgets?.apply(this, arguments) ?? this.widgets ?? [];
    return widgets.filter((widget) => !widget.advanced || this.showAdvanced);
  };
  nodeType.prototype.toggleAdvanced = function () {
    fitting.add(this); // the page's own way only grows
    toggleAdvanced?.apply(this, arguments);
    fitting.delete(this);
    fit(this);
  };
}

/** Gives a node the height for what it shows now, or more where the user gave more. */
export function fit(node) {
  if (window.LiteGraph.vueNodesMode || node.flags?.collapsed) return;
  const [width, height] = node.computeSize();
  fitting.add(node);
  node.setSize([Math.max(node.size[0], width), Math.max(given.get(node) ?? 0, height)]);
  fitting.delete(node);
  node.setDirtyCanvas?.(true, true);
}
