// The sample timeline of a run: prompts × steps, and two pictures of one prompt and seed under a slider.
import { openWide } from "../dialog.js";
import { el } from "../dom.js";
import { address } from "../server.js";
import { t } from "../text.js";

const THUMBNAIL = 128;

/**
 * Opens the timeline.
 *
 * @param {{name: string, samples: Array<{step: number, items: Array<{index: number, prompt: string, file: string,
 *     clip: string|null}>}>}} run as the server tells it
 */
export function openTimeline({ name, samples }) {
  const slider = makeSlider(name, samples);
  const grid = makeGrid(name, samples, slider);
  const dialog = openWide(t("timeline.title", { name }), el("div", { class: "lf-timeline" }, slider.element, grid.element));
  grid.end();
  return dialog;
}

/** The prompts of all steps in their order. */
function promptsOf(samples) {
  const found = new Map();
  for (const { items } of samples) for (const item of items) if (!found.has(item.index)) found.set(item.index, item.prompt ?? String(item.index + 1));
  return [...found].sort(([one], [other]) => one - other);
}

function itemAt(samples, step, index) {
  return samples.find((one) => one.step === step)?.items.find((item) => item.index === index) ?? null;
}

function stepName(step) {
  return step === 0 ? t("timeline.base") : t("timeline.step", { step });
}

function makeGrid(name, samples, slider) {
  const steps = samples.map(({ step }) => step);
  const head = el("div", { class: "lf-shots lf-shots-head", role: "row" }, el("div", { class: "lf-shot-prompt", role: "columnheader" }), steps.map((step) => el("div", { class: "lf-shot", role: "columnheader" }, stepName(step))));
  const rows = promptsOf(samples).map(([index, prompt]) =>
    el("div", { class: "lf-shots", role: "row" },
      el("div", { class: "lf-shot-prompt", role: "rowheader", title: prompt }, prompt),
      steps.map((step) => cell(step, index, prompt)),
    ),
  );
  const element = el("div", { class: "lf-grid-scroll", role: "grid", tabIndex: -1, ariaLabel: t("timeline.grid") }, head, rows);
  const cells = rows.map((row) => [...row.querySelectorAll("button, .lf-no-shot")]);
  const last = cells[0]?.at(-1);
  if (last) last.tabIndex = 0;

  function cell(step, index, prompt) {
    const item = itemAt(samples, step, index);
    if (!item) return el("div", { class: "lf-shot lf-no-shot", role: "gridcell" });
    const picture = el("img", { src: address(["runs", name, "samples", String(step), item.file], { size: THUMBNAIL }), alt: `${prompt} – ${stepName(step)}`, loading: "lazy", decoding: "async", width: 96, height: 96 });
    return el("div", { class: "lf-shot", role: "gridcell" },
      el("button", { class: "lf-thumbnail", type: "button", tabIndex: -1, title: `${stepName(step)}\n${prompt}\n${t("timeline.pick")}`, dataset: { step, index } }, picture));
  }

  element.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-step]");
    if (button) slider.pick(Number(button.dataset.index), Number(button.dataset.step), event.shiftKey);
  });
  element.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    const row = cells.findIndex((row) => row.includes(document.activeElement));
    if (row < 0) return;
    const column = cells[row].indexOf(document.activeElement);
    const next = cells[row + move[0]]?.[column + move[1]];
    event.preventDefault();
    if (!next?.matches("button")) return;
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return { element, end: () => (element.scrollLeft = element.scrollWidth) };
}

/** Two pictures over each other, with a slider between them. */
function makeSlider(name, samples) {
  const prompts = promptsOf(samples);
  const steps = samples.map(({ step }) => step);
  const choice = { index: prompts[0]?.[0] ?? 0, left: steps[0], right: steps.at(-1) };
  const select = (label, options, key) => {
    const field = el("select", { ariaLabel: label, on: { change: () => ((choice[key] = Number(field.value)), draw()) } }, options.map(([value, text]) => el("option", { value }, text)));
    return field;
  };
  const named = steps.map((step) => [step, stepName(step)]);
  const prompt = select(t("timeline.prompt"), prompts, "index");
  const left = select(t("timeline.left"), named, "left");
  const right = select(t("timeline.right"), named, "right");
  const under = el("img", { class: "lf-under", draggable: false });
  const over = el("img", { class: "lf-over", draggable: false });
  const knob = el("input", { type: "range", class: "lf-knob", min: 0, max: 100, step: 0.5, value: 50, ariaLabel: t("timeline.slider"), on: { input: cut } });
  const missing = el("p", { class: "lf-quiet" }, t("timeline.missing"));
  const frame = el("div", { class: "lf-frame" }, under, over, el("i", { class: "lf-split" }), knob);
  const element = el("div", { class: "lf-slider" }, el("div", { class: "lf-slider-fields" }, prompt, left, el("span", {}, "↔"), right), frame, missing);

  function cut() {
    frame.style.setProperty("--cut", `${knob.value}%`);
  }

  function draw() {
    const [one, other] = [itemAt(samples, choice.left, choice.index), itemAt(samples, choice.right, choice.index)];
    prompt.value = choice.index;
    left.value = choice.left;
    right.value = choice.right;
    frame.hidden = !one || !other;
    missing.hidden = !frame.hidden;
    for (const [image, item, step] of [[over, one, choice.left], [under, other, choice.right]]) {
      if (!item) continue;
      image.src = address(["runs", name, "samples", String(step), item.clip ?? item.file]);
      image.alt = `${item.prompt ?? ""} – ${stepName(step)}`;
    }
    cut();
  }

  draw();
  return {
    element,
    /** Takes a picture to the right side, or to the left one. */
    pick(index, step, toLeft) {
      choice.index = index;
      choice[toLeft ? "left" : "right"] = step;
      draw();
    },
  };
}
