// One chart of losses over steps: axes with values, smoothing, log scale, zoom by dragging, several runs over each other.
import { el, svg } from "./dom.js";
import { number } from "./format.js";
import { t } from "./text.js";

const COLOURS = ["#4c9be8", "#e8883a", "#4caf6d", "#c264c8", "#d9534f", "#9a8f2f", "#30a9a9", "#8a7ae0"];
/** Pixels around the plot: room for the axes' values. */
const MARGIN = { left: 46, right: 10, top: 8, bottom: 20 };
const SMALLEST_DRAG = 5;
const MOST_SMOOTHING = 0.98;

/** The colour of the n-th run of a chart. */
function colourOf(n) {
  return COLOURS[n % COLOURS.length];
}

/**
 * A chart. `show(runs)` draws `[{name, train: {steps, values}, validation: {steps, values}}…]`, each in its colour: training
 * thin (raw) and thick (smoothed), validation dotted with marks. `destroy()` ends it.
 *
 * @param {{compact?: boolean, smoothing?: number}} options compact: without controls, for a node
 */
export function makeChart({ compact = false, smoothing = 0.85 } = {}) {
  const state = { runs: [], smoothing, log: false, zoom: null, cursor: null, drag: null, width: 0, height: 0 };
  const plot = svg("svg", { class: "lf-plot", tabindex: compact ? "-1" : "0", role: "img", "aria-label": t("chart.label") });
  const told = el("div", { class: "lf-chart-told", ariaLive: "polite" });
  const controls = compact ? null : controlsOf(state, draw);
  const legend = compact ? null : el("div", { class: "lf-legend" });
  const element = el("div", { class: `lf-chart ${compact ? "lf-compact" : ""}` }, controls, plot, told, legend);
  const sizes = new ResizeObserver(([{ contentRect }]) => {
    const { width, height } = contentRect;
    if (Math.abs(width - state.width) < 1 && Math.abs(height - state.height) < 1) return;
    Object.assign(state, { width, height });
    draw();
  });
  sizes.observe(plot);
  if (!compact) listen(plot, state, draw);

  function draw() {
    if (!state.width || !state.height) return;
    const scale = scaleOf(state);
    plot.setAttribute("viewBox", `0 0 ${state.width} ${state.height}`);
    plot.replaceChildren(...(scale ? [...axes(state, scale), ...lines(state, scale), ...overlays(state, scale)] : []));
    told.textContent = scale ? tell(state) : t("chart.empty");
    if (controls) controls.querySelector(".lf-reset").hidden = !state.zoom;
  }

  return {
    element,
    show(runs) {
      state.runs = runs;
      if (legend) legend.replaceChildren(...(runs.length > 1 ? runs.map(entry) : []));
      draw();
    },
    destroy: () => sizes.disconnect(),
  };
}

function entry({ name }, n) {
  return el("span", {}, el("i", { style: { background: colourOf(n) } }), name);
}

function controlsOf(state, draw) {
  const slider = el("input", {
    type: "range", min: 0, max: MOST_SMOOTHING, step: 0.01, value: state.smoothing, ariaLabel: t("chart.smoothing"),
    on: { input: () => ((state.smoothing = Number(slider.value)), draw()) },
  });
  const log = el("input", { type: "checkbox", on: { change: () => ((state.log = log.checked), draw()) } });
  const reset = el("button", { class: "lf-button lf-reset", type: "button", hidden: true }, t("chart.reset"));
  reset.addEventListener("click", () => ((state.zoom = null), draw()));
  return el(
    "div",
    { class: "lf-chart-controls" },
    el("label", { title: t("chart.smoothing_told") }, t("chart.smoothing"), slider),
    el("label", {}, log, t("chart.log")),
    reset,
  );
}

// what is seen

/** Smoothed by an exponential mean whose weights sum up to 1 from the first value on. */
function smoothed(values, amount) {
  let [sum, weight] = [0, 0];
  return values.map((value) => {
    sum = amount * sum + (1 - amount) * value;
    weight = amount * weight + (1 - amount);
    return sum / weight;
  });
}

function inView(state, series) {
  if (!series?.steps.length) return { steps: [], values: [] };
  const [low, high] = state.zoom ?? [-Infinity, Infinity];
  const kept = series.steps.map((step, k) => k).filter((k) => series.steps[k] >= low && series.steps[k] <= high);
  return { steps: kept.map((k) => series.steps[k]), values: kept.map((k) => series.values[k]) };
}

function seriesOf(state, run) {
  const { steps, values } = run.train ?? { steps: [], values: [] };
  return {
    raw: inView(state, { steps, values }),
    train: inView(state, { steps, values: smoothed(values, state.smoothing) }),
    validation: inView(state, run.validation),
  };
}

function scaleOf(state) {
  const shown = state.runs.map((run) => seriesOf(state, run));
  const steps = shown.flatMap(({ train, validation }) => [train.steps[0], train.steps.at(-1), validation.steps[0], validation.steps.at(-1)]);
  const known = steps.filter((step) => step !== undefined);
  if (!known.length) return null;
  const usable = (value) => Number.isFinite(value) && (!state.log || value > 0);
  const sure = shown.flatMap(({ train, validation }) => [...train.values, ...validation.values]).filter(usable);
  const raw = shown.flatMap(({ raw: one }) => one.values).filter(usable).sort((one, other) => one - other);
  // single steps far off would flatten everything else: the raw line may leave the plot, the smoothed never does
  const trimmed = [raw[Math.floor(raw.length * 0.01)], raw[Math.ceil(raw.length * 0.99) - 1]].filter((value) => value !== undefined);
  const all = [...sure, ...trimmed];
  if (!all.length) return null;
  let [low, high] = [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];
  if (low === high) [low, high] = state.log ? [low / 1.1, high * 1.1] : [low - (Math.abs(low) * 0.1 || 0.1), high + (Math.abs(high) * 0.1 || 0.1)];
  const [first, last] = state.zoom ?? [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
  const span = last - first || 1;
  const inner = { width: state.width - MARGIN.left - MARGIN.right, height: state.height - MARGIN.top - MARGIN.bottom };
  const level = state.log ? Math.log : (value) => value;
  return {
    first, last, low, high, shown, inner,
    x: (step) => MARGIN.left + (inner.width * (step - first)) / span,
    y: (value) => MARGIN.top + inner.height * (1 - (level(value) - level(low)) / (level(high) - level(low))),
    step: (x) => first + (span * (x - MARGIN.left)) / inner.width,
  };
}

/** About `count` round numbers between two. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.7);
  const found = [];
  for (let k = Math.ceil(low / width - 1e-9); k * width <= high + width * 1e-9; k++) found.push(Number((k * width).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const one of [1, 2, 5]) found.push(Number((one * 10 ** power).toPrecision(12)));
  }
  const kept = found.filter((value) => value >= low && value <= high);
  return kept.length > 1 ? kept : ticks(low, high, 4).filter((value) => value > 0);
}

function axes(state, scale) {
  const { x, y, inner } = scale;
  const levels = state.log ? logTicks(scale.low, scale.high) : ticks(scale.low, scale.high, Math.max(2, Math.floor(inner.height / 36)));
  const steps = ticks(scale.first, scale.last, Math.max(2, Math.floor(inner.width / 70))).filter(Number.isInteger);
  return [
    ...levels.flatMap((value) => [
      svg("line", { class: "lf-grid", x1: MARGIN.left, x2: state.width - MARGIN.right, y1: y(value), y2: y(value) }),
      svg("text", { class: "lf-tick", x: MARGIN.left - 5, y: y(value) + 3, "text-anchor": "end" }, number(value)),
    ]),
    ...steps.map((step) => svg("text", { class: "lf-tick", x: x(step), y: state.height - 5, "text-anchor": "middle" }, String(step))),
  ];
}

function lines(state, scale) {
  const clip = svg("clipPath", { id: `lf-clip-${++made}` }, svg("rect", { x: MARGIN.left, y: MARGIN.top - 3, width: Math.max(0, scale.inner.width + 2), height: Math.max(0, scale.inner.height + 6) }));
  const points = ({ steps, values }) =>
    steps
      .map((step, k) => [step, values[k]])
      .filter(([, value]) => Number.isFinite(value) && (!state.log || value > 0))
      .map(([step, value]) => `${scale.x(step).toFixed(1)},${scale.y(value).toFixed(1)}`);
  const drawn = scale.shown.flatMap(({ raw, train, validation }, n) => {
    const stroke = colourOf(n);
    const marks = points(validation);
    return [
      state.smoothing > 0 && svg("polyline", { class: "lf-raw", points: points(raw).join(" "), stroke }),
      svg("polyline", { class: "lf-train", points: points(train).join(" "), stroke }),
      marks.length > 0 && svg("polyline", { class: "lf-validation", points: marks.join(" "), stroke }),
      ...marks.map((mark) => svg("circle", { class: "lf-mark", cx: mark.split(",")[0], cy: mark.split(",")[1], r: marks.length > 60 ? 1.5 : 3, fill: stroke })),
    ].filter(Boolean);
  });
  return [clip, svg("g", { "clip-path": `url(#${clip.id})` }, drawn)];
}
let made = 0;

function overlays(state, scale) {
  const parts = [];
  if (state.cursor !== null && state.cursor >= scale.first && state.cursor <= scale.last) {
    const x = scale.x(state.cursor);
    parts.push(svg("line", { class: "lf-cursor", x1: x, x2: x, y1: MARGIN.top, y2: state.height - MARGIN.bottom }));
  }
  if (state.drag) {
    const [from, to] = [Math.min(...state.drag), Math.max(...state.drag)];
    parts.push(svg("rect", { class: "lf-drag", x: from, y: MARGIN.top, width: to - from, height: scale.inner.height }));
  }
  return parts;
}

/** What is at the cursor, or at the end. */
function tell(state) {
  return state.runs
    .map((run) => {
      const train = nearest(run.train, state.cursor);
      const validation = nearest(run.validation, state.cursor);
      const parts = [];
      if (train !== null) {
        const value = smoothed(run.train.values, state.smoothing)[train];
        parts.push(t("chart.at", { step: run.train.steps[train], loss: number(run.train.values[train]), smoothed: number(value) }));
      }
      if (validation !== null) {
        parts.push(t("chart.validation_at", { loss: number(run.validation.values[validation]), step: run.validation.steps[validation] }));
      }
      return (state.runs.length > 1 ? `${run.name}: ` : "") + parts.join(" · ");
    })
    .join("\n");
}

function nearest(series, step) {
  if (!series?.steps.length) return null;
  if (step === null) return series.steps.length - 1;
  let best = 0;
  series.steps.forEach((one, k) => {
    if (Math.abs(one - step) < Math.abs(series.steps[best] - step)) best = k;
  });
  return best;
}

// mouse and keyboard

function listen(plot, state, draw) {
  const place = (event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) * state.width) / box.width;
    return Math.max(MARGIN.left, Math.min(state.width - MARGIN.right, x));
  };
  const cursorAt = (x) => {
    const scale = scaleOf(state);
    state.cursor = scale ? scale.step(x) : null;
  };
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    plot.setPointerCapture(event.pointerId);
    state.drag = [place(event), place(event)];
  });
  plot.addEventListener("pointermove", (event) => {
    if (state.drag) state.drag[1] = place(event);
    cursorAt(place(event));
    draw();
  });
  plot.addEventListener("pointerup", () => {
    const scale = scaleOf(state);
    const [from, to] = state.drag ? [Math.min(...state.drag), Math.max(...state.drag)] : [0, 0];
    if (scale && to - from > SMALLEST_DRAG) state.zoom = [Math.floor(scale.step(from)), Math.ceil(scale.step(to))];
    state.drag = null;
    draw();
  });
  plot.addEventListener("pointerleave", () => {
    if (!state.drag) state.cursor = null;
    draw();
  });
  plot.addEventListener("dblclick", () => ((state.zoom = null), draw()));
  plot.addEventListener("keydown", (event) => {
    const scale = scaleOf(state);
    if (!scale || event.ctrlKey || event.metaKey || event.altKey) return;
    const span = scale.last - scale.first;
    const at = state.cursor ?? scale.last;
    const move = (share) => (state.cursor = Math.max(scale.first, Math.min(scale.last, at + Math.max(1, Math.abs(share * span)) * Math.sign(share))));
    const zoom = (factor) => {
      const half = Math.max(1, (span * factor) / 2);
      state.zoom = [Math.max(0, Math.floor(at - half)), Math.ceil(at + half)];
    };
    const keys = {
      ArrowLeft: () => move(-0.01), ArrowRight: () => move(0.01), PageUp: () => move(-0.1), PageDown: () => move(0.1),
      Home: () => (state.cursor = scale.first), End: () => (state.cursor = scale.last),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => (state.zoom ? zoom(2) : null), 0: () => (state.zoom = null),
    };
    if (!keys[event.key]) return;
    keys[event.key]();
    event.preventDefault();
    event.stopPropagation();
    draw();
  });
  plot.addEventListener("blur", () => ((state.cursor = null), draw()));
}
