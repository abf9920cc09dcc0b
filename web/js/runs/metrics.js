// The curves of runs, read once and carried on by what the server tells of runs at work.
import { get } from "../server.js";
import { atWork, follow, runOf, subscribe } from "./store.js";

/** Points of a curve that are asked for; the server thins what is more, keeping lows and highs. */
const POINTS = 600;
const watched = new Map(); // by name: {listeners, curves, asked}
let listening = false;

/**
 * Calls a listener with the curves of a run, now and whenever they grow: `{train: {steps, values}, validation: {steps,
 * values}}`. Gives a function that ends it.
 */
export function watchCurves(name, listener) {
  if (!listening) listen();
  if (!watched.has(name)) watched.set(name, { listeners: new Set(), curves: null, asked: 0 });
  const one = watched.get(name);
  one.listeners.add(listener);
  if (one.curves) listener(one.curves);
  else read(name);
  return () => {
    one.listeners.delete(listener);
    if (!one.listeners.size && watched.get(name) === one) watched.delete(name);
  };
}

function listen() {
  listening = true;
  follow((detail) => watched.has(detail.name) && grow(detail.name, detail));
  subscribe(({ changed, before, anew }) => {
    for (const name of watched.keys()) {
      // what a run makes is told between its begin and its end, but not the lines at both
      const told = before.has(name) && atWork(before.get(name)) === atWork(runOf(name));
      if (changed.includes(name) && (anew || !told)) read(name);
    }
  });
}

async function read(name) {
  const one = watched.get(name);
  const asked = ++one.asked;
  const told = await get(["runs", name, "metrics"], { points: POINTS }).catch(() => null);
  if (!told || asked !== one.asked) return;
  const validation = told.series.validation_loss;
  one.curves = {
    train: pairs(told.steps, told.series.loss),
    validation: validation?.steps ? pairs(validation.steps, validation.values) : { steps: [], values: [] },
  };
  one.listeners.forEach((listener) => listener(one.curves));
}

/** Steps and values, without those where there is no value. */
function pairs(steps = [], values = []) {
  const kept = steps.map((step, k) => k).filter((k) => typeof values[k] === "number");
  return { steps: kept.map((k) => steps[k]), values: kept.map((k) => values[k]) };
}

/** Carries the curves of a run on by what the server tells of it. */
function grow(name, { steps = [], series = {}, reload }) {
  const one = watched.get(name);
  if (reload) return read(name); // lines were taken back: it goes on from an earlier step
  if (!one.curves || !(steps.length || series.validation_loss)) return;
  const came = [
    [one.curves.train, pairs(steps, series.loss)],
    [one.curves.validation, pairs(series.validation_loss?.steps, series.validation_loss?.values)],
  ];
  if (came.some(([curve]) => curve.steps.length > 2 * POINTS)) return read(name);
  for (const [curve, more] of came) {
    const first = more.steps.findIndex((step) => !(step <= curve.steps.at(-1))); // those before were in what was read
    if (first < 0) continue;
    curve.steps.push(...more.steps.slice(first));
    curve.values.push(...more.values.slice(first));
  }
  one.listeners.forEach((listener) => listener(one.curves));
}
