// The nodes that train together: those that a Train LoRA node gets its inputs from, directly or through others.

/** The node that an input is linked to, or null. */
export function sourceOf(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot < 0 ? null : node.getInputNode(slot);
}

/** All nodes before a node, itself among them. */
function before(node, found = new Set()) {
  if (!node || found.has(node)) return found;
  found.add(node);
  for (let slot = 0; slot < (node.inputs?.length ?? 0); slot++) before(node.getInputNode(slot), found);
  return found;
}

/** The Train LoRA nodes that a node belongs to: itself, those behind it, or those that train on the same base. */
function trainersOf(node) {
  const trainers = node.graph.nodes.filter((other) => other.comfyClass === "FoundryTrainLoRA");
  const behind = trainers.filter((trainer) => before(trainer).has(node));
  const base = sourceOf(node, "base");
  return behind.length ? behind : trainers.filter((trainer) => base && sourceOf(trainer, "base") === base);
}

/** Our nodes that train together with a node, by type: the first of each. */
export function trainingNodes(node) {
  const found = new Map();
  for (const trainer of trainersOf(node)) {
    for (const one of before(trainer)) if (!found.has(one.comfyClass)) found.set(one.comfyClass, one);
  }
  return found;
}
