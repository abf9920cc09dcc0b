// All runs as a list that stays as it is but for what changed: rows keep focus and scroll position.
import { el } from "../dom.js";
import { menuOf } from "../dialog.js";
import { date } from "../format.js";
import { t } from "../text.js";
import { act, buttonOf, further, labelOf, offered } from "./actions.js";
import { bar, chip, facts } from "./look.js";
import { noticeSwitch } from "./notices.js";
import { inOrder, load, runs, server, subscribe, trouble } from "./store.js";

/**
 * The list.
 *
 * @param {(name: string) => void} open opens a run
 * @returns {{element: HTMLElement, destroy: () => void, focus: (name: string) => void}}
 */
export function makeList(open) {
  const rows = new Map();
  const search = el("input", { type: "search", class: "lf-search", placeholder: t("runs.search"), ariaLabel: t("runs.search") });
  const note = el("div", { class: "lf-note", role: "status" });
  const list = el("ul", { class: "lf-runs", ariaLabel: t("runs.title") });
  const element = el("div", { class: "lf-list" }, el("div", { class: "lf-list-head" }, search, noticeSwitch()), note, list);
  search.addEventListener("input", filter);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const row = event.target.closest("li");
    if (!step || !row) return;
    let next = row[step];
    while (next?.hidden) next = next[step];
    next?.querySelector(".lf-open").focus();
    event.preventDefault();
    event.stopPropagation();
  });

  function update(names, gone) {
    for (const name of gone) {
      rows.get(name)?.element.remove();
      rows.delete(name);
    }
    for (const name of names) {
      if (!runs.has(name)) continue;
      if (!rows.has(name)) rows.set(name, makeRow(name, open));
      rows.get(name).update(runs.get(name));
    }
    inOrder().forEach((run, k) => {
      const row = rows.get(run.name)?.element;
      if (row && list.children[k] !== row) move(row, list.children[k]);
    });
    filter();
    tell();
  }

  function move(row, before) {
    const focused = row.contains(document.activeElement) ? document.activeElement : null;
    list.insertBefore(row, before ?? null);
    focused?.focus();
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const [name, row] of rows) {
      const run = runs.get(name);
      const text = `${name} ${run?.trigger ?? ""} ${run?.base ?? ""} ${run?.family ?? ""} ${run ? t(`runs.states.${run.state}`) : ""}`.toLowerCase();
      row.element.hidden = !words.every((word) => text.includes(word));
    }
  }

  function tell() {
    const text = trouble() || (server.loaded && !runs.size ? t("runs.none") : "");
    note.replaceChildren(text);
    if (server.error) note.append(" ", el("button", { class: "lf-button", type: "button", on: { click: load } }, t("again")));
    note.hidden = !text;
    element.classList.toggle("lf-offline", !server.connected);
  }

  const end = subscribe(({ changed, gone }) => update(changed, gone));
  update([...runs.keys()], []);
  return { element, destroy: end, focus: (name) => rows.get(name)?.element.querySelector(".lf-open").focus() };
}

function makeRow(name, open) {
  const top = el("span", { class: "lf-run-top" });
  const under = el("span", { class: "lf-facts" });
  const progress = el("span", {});
  const main = el("button", { class: "lf-open", type: "button", on: { click: () => open(name) } }, top, progress, under);
  const actions = el("span", { class: "lf-actions" });
  const more = menuOf(el("button", { class: "lf-icon pi pi-ellipsis-v", type: "button", title: t("more"), ariaLabel: `${t("more")}: ${name}` }), () =>
    further(runs.get(name)).map((action) => ({ label: labelOf(action), run: () => act(action, name), kind: action === "remove" ? "danger" : "" })),
  );
  const element = el("li", { class: "lf-run-row", dataset: { run: name } }, main, el("span", { class: "lf-side" }, actions, more));
  let shown = "";
  return {
    element,
    update(run) {
      top.replaceChildren(el("b", { title: name }, name), chip(run));
      progress.replaceChildren(bar(run));
      under.replaceChildren(facts(run).join(" · "));
      main.title = [run.error, run.base, run.owner, run.updated && date(run.updated)].filter(Boolean).join("\n");
      if (run.error) under.append(el("span", { class: "lf-error-line" }, run.error));
      const wanted = offered(run);
      if (wanted.join() === shown) return;
      shown = wanted.join();
      const focused = actions.contains(document.activeElement);
      actions.replaceChildren(...wanted.map((action) => buttonOf(action, name, { small: true })));
      if (focused) (actions.firstElementChild ?? more).focus();
    },
  };
}
