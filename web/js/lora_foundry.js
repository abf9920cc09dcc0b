// What the pack adds to ComfyUI's page: the sidebar tab, the panel on the node that trains, what nodes show, and LoRA lists
// that know new files. All other scripts of this folder only define things, and are loaded when they are needed.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { loadStyles } from "./dom.js";
import { register as registerNodes } from "./nodes/index.js";
import { takeConfigurations } from "./runs/drops.js";
import { noticeEnds } from "./runs/notices.js";
import { addPanel, guardResults, showResult, startPanels } from "./runs/panel.js";
import { start } from "./runs/store.js";
import { t, textsRead } from "./text.js";

const TAB = "lora-foundry";
let panels = null;

registerNodes(app);
guardResults();
app.registerExtension({
  name: "LoRAFoundry",
  async setup() {
    loadStyles();
    // what the key R does, without its pop-up message where the page can do so
    api.addEventListener("lora_foundry.saved", () => (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app));
    await textsRead;
    addTab();
    panels = startPanels(openRun);
    noticeEnds();
    takeConfigurations();
    start();
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Foundry")) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      showResult(this, output);
    };
  },
  nodeCreated: (node) => addPanel(node),
  afterConfigureGraph: () => panels?.refresh(),
});

function addTab() {
  let ended = () => {};
  app.extensionManager.registerSidebarTab({
    id: TAB,
    icon: "pi pi-bolt",
    title: t("title"),
    tooltip: t("title"),
    type: "custom",
    render: async (container) => {
      ended();
      const { showSidebar } = await import("./runs/sidebar.js");
      ended = showSidebar(container);
    },
    destroy: () => ended(),
  });
}

/** Opens a run in the sidebar. */
async function openRun(name) {
  const { goTo } = await import("./runs/sidebar.js");
  goTo(name);
  const bar = app.extensionManager.sidebarTab ?? app.extensionManager;
  if (bar.activeSidebarTabId !== TAB) bar.toggleSidebarTab?.(TAB);
}
