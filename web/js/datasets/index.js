// The sidebar's view of the data sets: a list, from which each opens in a wide editor.
import { el, loadStyles } from "../dom.js";
import { address, get, post } from "../server.js";
import { t, textsRead } from "../text.js";
import { openEditor } from "./editor.js";
import { commonFolder, dropZone, upload, uploaded } from "./upload.js";

/** Shows the list in an element; asks the server once, and after what is done here. */
export async function show(container) {
  loadStyles("datasets");
  await textsRead;
  const list = el("div", { class: "lf-sets" });
  const status = el("div", { class: "lf-status", role: "status" });
  const name = el("input", { type: "text", placeholder: t("data.new_name"), "aria-label": t("data.new_name"), maxLength: 100 });

  const tell = (text, wrong = false) => {
    status.textContent = text;
    status.classList.toggle("lf-wrong", wrong);
  };
  const load = async () => {
    try {
      const { datasets } = await get(["datasets"]);
      list.replaceChildren(...datasets.map((set) => entry(set, open)));
      if (!datasets.length) list.append(el("p", { class: "lf-hint" }, t("data.none")));
    } catch (error) {
      tell(error.message, true);
    }
  };
  const open = async (set) => {
    await openEditor(set);
    await load();
    list.querySelector(`[data-id="${set.id}"]`)?.focus();
  };
  const create = async (wanted, files = []) => {
    try {
      const made = await post(["datasets"], { name: wanted });
      name.value = "";
      if (files.length) tell(uploaded(await upload(made, files, (done, of) => tell(t("data.uploading", { done, of })))));
      await load();
      await open(made);
    } catch (error) {
      tell(error.message, true);
    }
  };

  const form = el("form", { class: "lf-row", on: {
    submit: (event) => {
      event.preventDefault();
      if (name.value.trim()) create(name.value.trim());
      else name.focus();
    },
  } }, name, el("button", { type: "submit" }, t("data.new")));
  const root = el("section", { class: "lf-data lf-data-list", "aria-label": t("data.title") }, form,
    el("div", { class: "lf-row" }, el("button", { type: "button", on: { click: load } }, t("data.refresh")), el("span", { class: "lf-hint" }, t("data.drop_folder"))), status, list);
  dropZone(root, (files) => create(name.value.trim() || commonFolder(files) || t("data.new_default"), files));
  container.replaceChildren(root);
  await load();
}

function entry(set, open) {
  const counts = [set.pictures && t("data.count", { count: set.pictures }), set.clips && t("data.clips", { count: set.clips }),
    t("data.captioned", { count: set.captioned })].filter(Boolean).join(" · ");
  const used = set.used_by.length ? t("data.used_by", { runs: set.used_by.slice(-3).join(", "), count: set.used_by.length }) : null;
  const missing = set.pictures + set.clips - set.captioned;
  return el("button", { type: "button", class: "lf-set", dataset: { id: set.id }, title: set.folder, on: { click: () => open(set) } },
    el("img", { class: "lf-cover", alt: "", loading: "lazy", src: address(["datasets", set.id, "cover"], { size: 96, t: set.updated }), on: { error: ({ target }) => target.remove() } }),
    el("strong", { dir: "auto" }, set.name), el("span", {}, counts),
    missing > 0 && el("span", { class: "lf-lacking" }, t("data.lacking", { count: missing })),
    set.resolutions.length ? el("span", { class: "lf-hint" }, t("data.trained_at", { resolutions: set.resolutions.join(", ") })) : null,
    used && el("span", { class: "lf-hint" }, used));
}
