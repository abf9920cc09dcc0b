// Compare: checkpoints × strengths × prompts, drawn by ComfyUI's own sampler; one is picked and used.
import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";
import { openWide } from "../dialog.js";
import { el } from "../dom.js";
import { t } from "../text.js";
import { useCheckpoint } from "./checkpoints.js";
import { comparison } from "./graph.js";

const MOST_CELLS = 200;
const MOST_SEEDS = 4;
const [MOST_TRIES, RETRY] = [20, 300]; // milliseconds between them
const [SAMPLER, SCHEDULER, SCHEDULER_OF_DDPM] = ["euler", "simple", "normal"];
const DDPM = ["sd15", "sdxl"];

/** Opens the comparison of a run, as the server tells it. */
export function openCompare(run) {
  const view = makeCompare(run);
  return openWide(t("compare.title", { name: run.name }), view.element, view.destroy);
}

/** The prompts of the run's own previews, each once, with the trigger in its place. */
function promptsOf({ samples, trigger }) {
  const all = (samples.at(-1)?.items ?? []).map(({ prompt }) => (prompt ?? "").replaceAll("[trigger]", trigger ?? "").trim()).filter(Boolean);
  return [...new Set(all)];
}

function makeCompare(run) {
  let drawing = null; // what is being drawn: {id, columns, cells, pictures}
  const form = makeForm(run);
  const draw = el("button", { class: "lf-button lf-primary", type: "submit" }, t("compare.draw"));
  const stop = el("button", { class: "lf-button", type: "button", hidden: true, on: { click: () => api.interrupt(drawing?.id) } }, t("compare.stop"));
  const graph = el("button", { class: "lf-button", type: "button", title: t("compare.graph_told"), on: { click: openGraph } }, t("compare.graph"));
  const note = el("div", { class: "lf-note", role: "status" }, t("compare.hint"));
  const grid = el("div", { class: "lf-compare-grid" });
  form.element.append(el("div", { class: "lf-buttons" }, draw, stop, graph));
  const element = el("div", { class: "lf-compare" }, form.element, el("div", { class: "lf-compare-result" }, note, grid));
  form.element.addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });

  function wanted() {
    const { columns, prompts, how } = form.read();
    if (!columns.length) throw new Error(t("compare.no_steps"));
    if (!prompts.length) throw new Error(t("compare.no_prompts"));
    if (columns.length * prompts.length * how.seeds > MOST_CELLS) throw new Error(t("compare.too_many", { count: MOST_CELLS }));
    return { columns, prompts, how, ...comparison(run.name, columns, prompts, how) };
  }

  async function start() {
    try {
      const { columns, prompts, how, prompt, cells } = wanted();
      const pictures = table(columns, prompts, how);
      const answer = await api.queuePrompt(0, { output: prompt, workflow: {} }); // null would break ComfyUI's list of jobs
      drawing = { id: answer.prompt_id, columns, cells, pictures, done: 0 };
      busy(true);
    } catch (error) {
      note.textContent = error.response?.error?.message ?? error.message;
    }
  }

  function openGraph() {
    try {
      const { prompt } = wanted();
      element.closest("dialog").close();
      app.loadApiJson(prompt, t("compare.file", { name: run.name }));
    } catch (error) {
      note.textContent = error.message;
    }
  }

  function busy(on) {
    draw.disabled = on;
    stop.hidden = !on;
    if (on) note.textContent = t("compare.drawn", { done: drawing.done, all: drawing.cells.size });
  }

  function table(columns, prompts, { seed, seeds }) {
    const heads = columns.map((column) =>
      el("th", { scope: "col" }, columnName(column),
        column.step === null ? null : el("button", { class: "lf-button", type: "button", title: t("run.use_told"), on: { click: (event) => use(event.currentTarget, column) } }, t("run.use"))),
    );
    const places = prompts.map((text) => columns.map((column) => Array.from({ length: seeds }, (_, which) =>
      el("div", { class: "lf-not-drawn", dataset: { name: `${text} – ${columnName(column)}${seeds > 1 ? `, ${t("compare.seed")} ${seed + which}` : ""}` } }))));
    const cell = (pictures) => el("td", {}, el("div", { class: `lf-compare-cell${seeds > 1 ? " lf-many" : ""}` }, pictures));
    grid.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, el("td", {}), heads)),
      el("tbody", {}, places.map((row, k) => el("tr", {}, el("th", { scope: "row" }, prompts[k]), row.map(cell))))));
    return places;
  }

  async function use(button, { step, strength }) {
    button.disabled = true;
    try {
      const file = await useCheckpoint(run.name, step, strength);
      note.textContent = t("run.used", { file });
    } catch (error) {
      note.textContent = error.message;
    }
    button.disabled = false;
  }

  function place(id, image) {
    const [row, column, which] = drawing.cells.get(id);
    const cell = drawing.pictures[row][column][which];
    if (!image || cell.firstChild) return;
    const source = api.apiURL(`/view?${new URLSearchParams(image)}`);
    cell.className = "";
    cell.append(el("a", { href: source, target: "_blank", rel: "noopener", title: cell.dataset.name }, el("img", { src: source, alt: cell.dataset.name, decoding: "async" })));
    drawing.done += 1;
    busy(true);
  }

  /** What came while the socket was lost, or from the cache. The server tells that a prompt is done before it notes it: `tries`. */
  async function readHistory(tries = 0) {
    const { id } = drawing ?? {};
    if (!id) return;
    const ask = (path) => api.fetchApi(path).then((answer) => answer.json()).catch(() => null);
    const [queue, history] = [await ask("/queue"), await ask(`/history/${id}`)];
    if (!history || drawing?.id !== id) return;
    if (!history[id]) {
      if (tries) setTimeout(() => readHistory(tries - 1), RETRY);
      else if (queue && ![...queue.queue_running, ...queue.queue_pending].some((item) => item[1] === id)) ended(t("compare.stopped")); // its server is gone
      return;
    }
    for (const [node, output] of Object.entries(history[id].outputs)) if (drawing.cells.has(node)) place(node, output.images?.[0]);
    const error = history[id].status?.messages?.find(([kind]) => kind === "execution_error");
    ended(error ? error[1].exception_message : history[id].status?.status_str === "success" ? t("compare.done") : t("compare.stopped"));
  }

  function ended(text) {
    drawing = null;
    busy(false);
    note.textContent = text;
  }

  const heard = {
    executed: ({ detail }) => detail.prompt_id === drawing?.id && drawing.cells.has(detail.node) && place(detail.node, detail.output?.images?.[0]),
    execution_success: ({ detail }) => detail.prompt_id === drawing?.id && readHistory(MOST_TRIES),
    execution_error: ({ detail }) => detail.prompt_id === drawing?.id && ended(detail.exception_message),
    execution_interrupted: ({ detail }) => detail.prompt_id === drawing?.id && ended(t("compare.stopped")),
    reconnected: () => readHistory(2),
  };
  for (const [event, listener] of Object.entries(heard)) api.addEventListener(event, listener);
  return {
    element,
    destroy() {
      drawing = null;
      for (const [event, listener] of Object.entries(heard)) api.removeEventListener(event, listener);
    },
  };
}

function columnName({ step, strength }) {
  return step === null ? t("timeline.base") : `${t("timeline.step", { step })}${strength === 1 ? "" : ` × ${strength}`}`;
}

function makeForm(run) {
  const last = run.checkpoints.slice(-2).map(({ step }) => step);
  const box = (label, checked) => {
    const field = el("input", { type: "checkbox", checked });
    return { field, element: el("label", {}, field, label) };
  };
  const base = box(t("timeline.base"), true);
  const steps = run.checkpoints.map(({ step, best }) => ({ step, ...box(`${step}${best ? " ★" : ""}`, best || last.includes(step)) }));
  const strengths = el("input", { type: "text", value: "1" });
  const prompts = el("textarea", { rows: 5 }, promptsOf(run).join("\n"));
  const seed = el("input", { type: "number", min: 0, step: 1, value: 42 });
  const seeds = el("input", { type: "number", min: 1, max: MOST_SEEDS, step: 1, value: 1 });
  const negative = el("input", { type: "text" });
  const { sampler_name: sampler, scheduler } = makeChoices({ sampler_name: SAMPLER, scheduler: DDPM.includes(run.family) ? SCHEDULER_OF_DDPM : SCHEDULER });
  const drawingSteps = el("input", { type: "number", min: 1, max: 1000, step: 1, placeholder: t("compare.own") });
  const named = (label, field) => el("label", { class: "lf-field" }, label, field);
  const element = el("form", { class: "lf-compare-form" },
    el("fieldset", {}, el("legend", {}, t("compare.steps")), el("div", { class: "lf-boxes" }, base.element, steps.map((one) => one.element))),
    named(t("compare.strengths"), strengths), named(t("compare.prompts"), prompts),
    el("div", { class: "lf-fields" }, named(t("compare.seed"), seed), named(t("compare.seeds"), seeds)),
    named(t("compare.negative"), negative),
    el("div", { class: "lf-fields" }, named(t("compare.sampler_name"), sampler), named(t("compare.scheduler"), scheduler), named(t("compare.sampling_steps"), drawingSteps)),
  );
  return {
    element,
    read() {
      const amounts = [...new Set(strengths.value.split(/[,\s]+/).filter(Boolean).map(Number))];
      if (amounts.some((amount) => !Number.isFinite(amount))) throw new Error(t("compare.bad_strength"));
      const chosen = steps.filter(({ field }) => field.checked).flatMap(({ step }) => (amounts.length ? amounts : [1]).map((strength) => ({ step, strength })));
      return {
        columns: [...(base.field.checked ? [{ step: null, strength: 0 }] : []), ...chosen],
        prompts: prompts.value.split("\n").map((line) => line.trim()).filter(Boolean),
        how: {
          seed: Number(seed.value) || 0, seeds: Math.min(MOST_SEEDS, Math.max(1, Math.round(Number(seeds.value)) || 1)), negative: negative.value,
          sampler: sampler.value, scheduler: scheduler.value, steps: Math.max(0, Math.round(Number(drawingSteps.value)) || 0),
        },
      };
    },
  };
}

/** Lists of ComfyUI's sampler node by input, each with one name chosen; the others come from the server. */
function makeChoices(chosen) {
  const lists = Object.fromEntries(Object.entries(chosen).map(([input, name]) => [input, el("select", { ariaLabel: t(`compare.${input}`) }, el("option", {}, name))]));
  api.fetchApi("/object_info/KSampler").then(async (answer) => {
    const { required } = (await answer.json()).KSampler.input;
    for (const [input, list] of Object.entries(lists)) {
      const [kind, more] = required[input];
      const names = Array.isArray(kind) ? kind : more.options;
      list.replaceChildren(...names.map((name) => el("option", { selected: name === list.value }, name)));
    }
  }).catch(() => {}); // those that are chosen stay
  return lists;
}
