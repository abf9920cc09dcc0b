// How a run looks in lists and heads: its state, how far it is, and the line below.
import { el } from "../dom.js";
import { duration, number } from "../format.js";
import { t } from "../text.js";
import { atWork, server } from "./store.js";

/** The state that is shown: as the run says, but "crashed" where its process is gone. */
export function stateOf(run) {
  return run.crashed ? "crashed" : run.state;
}

/** A small mark with the state's name. */
export function chip(run) {
  const state = stateOf(run);
  return el("span", { class: `lf-chip lf-${state}` }, t(`runs.states.${state}`));
}

/** The bar of the steps made. */
export function bar(run) {
  const share = run.steps ? Math.min(1, run.step / run.steps) : 0;
  return el("div", { class: `lf-bar lf-${stateOf(run)}`, ariaHidden: "true" }, el("i", { style: { width: `${(100 * share).toFixed(2)}%` } }));
}

/** Step, time left, loss, speed, device and place in the queue, as far as they are known. */
export function facts(run) {
  const live = atWork(run) && server.connected;
  return [
    t("runs.step", { step: run.step, steps: run.steps }),
    live && run.state === "running" && run.eta_seconds !== null && run.eta_seconds !== undefined && t("runs.left", { time: duration(run.eta_seconds) }),
    typeof run.loss === "number" && t("runs.loss", { loss: number(run.loss) }),
    live && run.seconds_per_step && t("runs.speed", { seconds: number(run.seconds_per_step) }),
    live && run.device,
    !atWork(run) && run.goes_on && t("runs.goes_on"),
    live && run.state === "queued" && run.place && t("runs.place", { place: run.place }),
  ].filter(Boolean);
}
