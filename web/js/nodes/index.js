// What the page does with our nodes beyond ComfyUI's own: which widgets they show, what they say, folders and presets.
import { loadStyles } from "../dom.js";
import { textsRead } from "../text.js";
import { keepRoom } from "./room.js";
import { showExpected } from "./expected.js";
import { FOLDER, addFolder, followFolder } from "./folder.js";
import { addPresetButton } from "./presets.js";
import { sayRefusalsOnce } from "./refusals.js";
import { sayProgress, sayResults } from "./texts.js";
import { followRules, startFollowing } from "./widgets.js";

const isOurs = (node) => node.comfyClass?.startsWith("Foundry");

/** Registers it all with the page; called once, before the page reads the nodes' definitions. */
export function register(app) {
  app.registerExtension({
    name: "LoRAFoundry.Nodes",
    async setup() {
      loadStyles();
      sayProgress(isOurs);
      sayRefusalsOnce();
      await textsRead;
    },
    beforeRegisterNodeDef(nodeType, nodeData) {
      if (!nodeData.name.startsWith("Foundry")) return;
      keepRoom(nodeType);
      followRules(nodeType, nodeData, { [FOLDER]: { foundry_unlinked: ["images"] } });
      sayResults(nodeType);
      showExpected(nodeType);
      followFolder(nodeType, nodeData);
    },
    nodeCreated(node) {
      if (!isOurs(node)) return;
      addFolder(node);
      addPresetButton(node);
      startFollowing(node);
    },
    afterConfigureGraph() {
      // ComfyUI fits whole templates into view, too small to read; ours say once how they open
      const { extra } = app.rootGraph ?? {};
      if (!extra?.foundry_opens || !extra.ds) return;
      delete extra.foundry_opens;
      if (!app.extensionManager.setting.get("Comfy.EnableWorkflowViewRestore")) return;
      Object.assign(app.canvas.ds, { scale: extra.ds.scale, offset: [...extra.ds.offset] });
    },
  });
}
