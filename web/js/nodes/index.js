// What the page does with our nodes beyond ComfyUI's own: which widgets they show, what they say, folders and presets.
import { loadStyles } from "../dom.js";
import { keepRoom } from "./room.js";
import { sayProgress, sayResults } from "./texts.js";
import { followRules, startFollowing } from "./widgets.js";

const isOurs = (node) => node.comfyClass?.startsWith("Foundry");

/** Registers it all with the page; called once, before the page reads the nodes' definitions. */
export function register(app) {
  app.registerExtension({
    name: "LoRAFoundry.Nodes",
    setup() {
      loadStyles();
      sayProgress(isOurs);
    },
    beforeRegisterNodeDef(nodeType, nodeData) {
      if (!nodeData.name.startsWith("Foundry")) return;
      keepRoom(nodeType);
      followRules(nodeType, nodeData);
      sayResults(nodeType);
    },
    nodeCreated(node) {
      if (isOurs(node)) startFollowing(node);
    },
  });
}
