// Files of other trainers, read into a job or into the nodes of the open workflow.
import { app } from "../../../../scripts/app.js";
import { ask, toast } from "../dialog.js";
import { el } from "../dom.js";
import { post } from "../server.js";
import { t } from "../text.js";

const LARGEST = 2_000_000;

/** Reads files (the configuration first, what it names after it), shows what became of them, and offers what can be done. */
export async function importFiles(files) {
  try {
    if (files.some((file) => file.size > LARGEST)) throw new Error(t("import.too_large"));
    const texts = await Promise.all(files.map(async (file) => ({ name: file.name, text: await file.text() })));
    if (!texts.length) return;
    const [first, ...more] = texts;
    const told = await post(["import"], { ...first, more });
    await offer(first.name, told);
  } catch (error) {
    toast(app, "error", t("import.failed", { error: error.message }), 12000);
  }
}

async function offer(name, { job, notes, nodes }) {
  const found = nodes ? widgetsOf(nodes) : [];
  const changes = found.filter(({ widget, value }) => widget.value !== value);
  const body = [
    notes.length ? el("div", {}, el("p", {}, t("import.notes")), el("ul", { class: "lf-notes" }, notes.map((note) => el("li", { class: "lf-text" }, typeof note === "string" ? note : JSON.stringify(note))))) : el("p", {}, t("import.all_taken")),
    el("pre", { class: "lf-pre", tabIndex: 0, ariaLabel: "job.yaml" }, job),
  ];
  if (changes.length) body.push(el("details", {}, el("summary", {}, t("import.changes", { count: changes.length })), el("table", { class: "lf-changes" }, el("tbody", {}, changes.map(row)))));
  const answers = [{ label: t("import.copy"), value: "copy", kind: "primary" }];
  if (changes.length) answers.push({ label: t("import.fill"), value: "fill", title: t("import.fill_told") });
  const answer = await ask(t("import.title", { name }), body, answers);
  if (answer === "copy") {
    await navigator.clipboard.writeText(job);
    toast(app, "success", t("copied"));
  } else if (answer === "fill") {
    for (const { node, widget, value } of changes) {
      widget.value = value;
      widget.callback?.(value);
      node.setDirtyCanvas?.(true, true);
    }
    toast(app, "success", t("import.filled", { count: changes.length }));
  }
}

function row({ node, widget, value }) {
  return el("tr", {}, el("th", { scope: "row" }, `${node.title}: ${widget.name}`), el("td", {}, String(widget.value)), el("td", {}, "→"), el("td", {}, String(value)));
}

/** The widgets of the open workflow that settings belong to: of the first node of each type. */
function widgetsOf(settings) {
  const graph = app.rootGraph ?? app.graph;
  return settings.flatMap(({ node: type, widget: name, value }) => {
    const node = graph.nodes.find((one) => one.type === type);
    const widget = node?.widgets?.find((one) => one.name === name);
    return widget ? [{ node, widget, value }] : [];
  });
}
