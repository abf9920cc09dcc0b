// The curves of runs, read once and carried on by what the server tells of runs at work.
import { get } from "../server.js";
import { follow, subscribe } from "./store.js";

/** Points of a curve that are asked for; the server thins what is more, keeping lows and highs. */
const POINTS = 600;
const watched = new Map(); // by name: {listeners, curves, asked}
let listening = false;

/**
 * Calls a listener with the curves of a run, now and whenever they grow: `{train: {steps, values}, validation: {steps,
 * values}, parts: {name: {steps, values}}}`. Gives a function that ends it.
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
  subscribe(({ changed, before }) => {
    const all = !before.size; // read anew, or the connection changed
    for (const name of watched.keys()) {
      const known = before.get(name);
      if (changed.includes(name) && (all || !known)) read(name);
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

function grow(name, { step, loss, validation_loss: validation, points }) {
  const one = watched.get(name);
  const came = points ?? [{ step, loss, validation_loss: validation }];
  if (!one.curves) return;
  for (const point of came) {
    for (const [curve, value] of [[one.curves.train, point.loss], [one.curves.validation, point.validation_loss]]) {
      if (typeof value !== "number") continue;
      const last = curve.steps.at(-1) ?? -1;
      if (point.step < last || curve.steps.length > 2 * POINTS) return read(name); // goes on from an earlier step; or is long
      if (point.step === last) curve.values[curve.values.length - 1] = value;
      else (curve.steps.push(point.step), curve.values.push(value));
    }
  }
  one.listeners.forEach((listener) => listener(one.curves));
}
