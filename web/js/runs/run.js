// One run: curve, checkpoints, samples, settings and log.
import { app } from "../../../../scripts/app.js";
import { makeChart } from "../chart.js";
import { menuOf, toast } from "../dialog.js";
import { el } from "../dom.js";
import { get, address } from "../server.js";
import { t } from "../text.js";
import { act, buttonOf, further, labelOf, offered } from "./actions.js";
import { makeCheckpoints } from "./checkpoints.js";
import { bar, chip, facts, stateOf } from "./look.js";
import { watchCurves } from "./metrics.js";
import { follow, runOf, runs, server, subscribe, trouble } from "./store.js";

/** Edge of a thumbnail that is asked of the server, in pixels. */
const THUMBNAIL = 160;
const MOST_THUMBNAILS = 6;

/**
 * The view of a run.
 *
 * @param {string} name
 * @param {{back: () => void, open: (name: string) => void}} go
 */
export function makeRun(name, { back, open }) {
  const state = { told: null, over: [], curves: new Map(), ends: new Map(), asked: 0, seen: "" };
  const returning = el("button", { class: "lf-icon pi pi-arrow-left", type: "button", title: t("run.back"), ariaLabel: t("run.back"), on: { click: back } });
  const title = el("h3", { class: "lf-run-title", title: name }, name);
  const more = menuOf(el("button", { class: "lf-icon pi pi-ellipsis-v", type: "button", title: t("more"), ariaLabel: t("more") }), menu);
  const head = el("header", { class: "lf-run-head" }, returning, title, el("span", {}), more);
  const status = el("div", { class: "lf-run-status" });
  const actions = el("div", { class: "lf-run-actions" });
  const note = el("div", { class: "lf-note", role: "status" });
  const chart = makeChart();
  const overlay = menuOf(el("button", { class: "lf-button", type: "button", title: t("run.over_told") }, t("run.over")), others);
  const samples = el("section", { class: "lf-section" });
  const checkpoints = makeCheckpoints(name, { refresh });
  const settings = el("details", { class: "lf-section" }, el("summary", {}, t("run.settings")));
  const log = makeLog(name);
  const element = el("div", { class: "lf-run" }, head, status, actions, note, chart.element, el("div", { class: "lf-under-chart" }, overlay), samples, checkpoints.element, settings, log.element);
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    back();
  });

  function menu() {
    return further(runOf(name)).map((action) => ({ label: labelOf(action), run: () => act(action, name), kind: action === "remove" ? "danger" : "" }));
  }

  function others() {
    const all = [...runs.keys()].filter((other) => other !== name);
    return all.map((other) => ({ label: `${state.over.includes(other) ? "✓ " : ""}${other}`, run: () => toggle(other) }));
  }

  function toggle(other) {
    if (state.over.includes(other)) {
      state.over = state.over.filter((one) => one !== other);
      state.ends.get(other)?.();
      state.ends.delete(other);
      draw();
    } else {
      state.over.push(other);
      watch(other);
    }
  }

  function watch(one) {
    state.ends.set(one, watchCurves(one, (curves) => (state.curves.set(one, curves), draw())));
  }

  function draw() {
    const shown = [name, ...state.over].filter((one) => state.curves.has(one));
    chart.show(shown.map((one) => ({ name: one, ...state.curves.get(one) })));
  }

  function update() {
    const run = runOf(name);
    note.textContent = trouble() || (!run && server.loaded ? t("run.gone") : "");
    note.hidden = !note.textContent;
    if (!run) return;
    status.replaceChildren(el("div", { class: "lf-run-line" }, chip(run), el("span", { class: "lf-quiet" }, [run.family, run.base, run.trigger].filter(Boolean).join(" · "))), bar(run), el("div", { class: "lf-facts" }, facts(run).join(" · ")));
    if (state.told?.phase) status.append(el("div", { class: "lf-quiet" }, state.told.phase));
    if (run.error) status.append(el("div", { class: "lf-text lf-error-text", role: "alert" }, run.error));
    for (const message of state.told?.messages ?? []) status.append(el("div", { class: "lf-text lf-quiet" }, `⚠ ${message}`));
    const wanted = offered(run).join();
    if (actions.dataset.shown !== wanted) {
      const focused = actions.contains(document.activeElement);
      actions.dataset.shown = wanted;
      actions.replaceChildren(...offered(run).map((action) => buttonOf(action, name)));
      if (focused) (actions.firstElementChild ?? returning).focus();
    }
    const seen = `${stateOf(run)} ${run.previews}`;
    if (state.seen && state.seen !== seen) refresh();
    state.seen = seen;
  }

  async function refresh() {
    const asked = ++state.asked;
    const told = await get(["runs", name]).catch((error) => ({ error: error.message }));
    if (asked !== state.asked) return;
    if (told.checkpoints) {
      state.told = told;
      update();
      showSamples();
      checkpoints.show(told);
      showSettings();
      log.refresh();
    } else if (runOf(name)) note.replaceChildren(told.error ?? "");
  }

  function showSamples() {
    const { samples: steps } = state.told;
    if (!steps.length) return samples.replaceChildren();
    const last = steps.at(-1);
    const timeline = async () => (await import("./timeline.js")).openTimeline(state.told);
    const pictures = last.items.slice(0, MOST_THUMBNAILS).map((item) =>
      el("button", { class: "lf-thumbnail", type: "button", title: item.prompt ?? "", on: { click: timeline } },
        el("img", { src: address(["runs", name, "samples", String(last.step), item.file], { size: THUMBNAIL }), alt: item.prompt ?? "", loading: "lazy", decoding: "async" })),
    );
    samples.replaceChildren(
      el("div", { class: "lf-section-head" }, el("h4", {}, t("run.samples", { step: last.step })), el("button", { class: "lf-button", type: "button", on: { click: timeline } }, t("run.timeline"))),
      el("div", { class: "lf-thumbnails" }, pictures),
    );
  }

  function showSettings() {
    const { job, settings: values } = state.told;
    const copy = el("button", { class: "lf-button", type: "button" }, t("run.copy_job"));
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(job).then(() => toast(app, "success", t("copied")), (error) => toast(app, "error", error.message));
    });
    settings.replaceChildren(
      settings.firstChild,
      el("table", { class: "lf-changes" }, el("tbody", {}, (values ?? []).map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, typeof value === "object" ? JSON.stringify(value) : String(value)))))),
      copy,
      el("pre", { class: "lf-pre", tabIndex: 0 }, job),
    );
  }

  const ends = [
    subscribe(({ changed, before, anew }) => {
      if (runs.has(name) && !changed.includes(name)) return;
      update();
      if (changed.includes(name) && (anew || !before.has(name))) refresh();
    }),
    follow((detail) => {
      if (detail.name !== name) return;
      if (detail.samples || detail.checkpoints || detail.choice) refresh();
      else if (detail.phase !== undefined && state.told) (state.told.phase = detail.phase, update());
    }),
  ];
  watch(name);
  update();
  refresh();
  return {
    element,
    ready: () => returning.focus(),
    destroy() {
      ends.forEach((end) => end());
      state.ends.forEach((end) => end());
      chart.destroy();
    },
  };
}

/** The end of the run's log, read while it is open. */
function makeLog(name) {
  let [text, read, busy] = ["", 0, false];
  const shown = el("pre", { class: "lf-pre", tabIndex: 0, ariaLabel: t("run.log") });
  const element = el("details", { class: "lf-section", on: { toggle: () => refresh() } }, el("summary", {}, t("run.log")), shown);
  async function refresh() {
    if (!element.open || busy) return;
    busy = true;
    const told = await get(["runs", name, "log"], { after: read }).catch((error) => ({ error: error.message }));
    busy = false;
    if (told.error) return shown.replaceChildren(told.error);
    text = (told.size < read ? "" : text) + told.text;
    read = told.size;
    const end = shown.scrollHeight - shown.scrollTop - shown.clientHeight < 20;
    shown.textContent = text.slice(-65536);
    if (end) shown.scrollTop = shown.scrollHeight;
  }
  return { element, refresh };
}
