// Configurations of other trainers that are dropped on the page are read; ComfyUI knows nothing to do with such files.

const NAMES = /\.(ya?ml|toml)$/i;

/** Listens from now on. Views that take files themselves keep theirs. */
export function takeConfigurations() {
  document.addEventListener("drop", async (event) => {
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length || !files.every(({ name }) => NAMES.test(name)) || event.target.closest?.(".lf-sidebar, dialog")) return;
    event.preventDefault();
    event.stopPropagation();
    const { importFiles } = await import("./import.js");
    importFiles(files);
  }, true);
}
