// A notice when a run ends or fails, also one that ended while the socket was lost.
import { app } from "../../../../scripts/app.js";
import { toast } from "../dialog.js";
import { t } from "../text.js";
import { stateOf } from "./look.js";
import { atWork, runOf, subscribe } from "./store.js";

const SEVERITY = { finished: "success", failed: "error", crashed: "error" };

/** Tells of runs that were at work and have ended; where the browser may, in the desktop's own way too. */
export function noticeEnds() {
  subscribe(({ changed, before }) => {
    for (const name of changed) {
      const [known, run] = [before.get(name), runOf(name)];
      if (!known || !run || !atWork(known) || atWork(run)) continue;
      const state = stateOf(run);
      if (!SEVERITY[state]) continue; // paused or stopped: somebody asked for it
      const text = t(`runs.ended.${state}`, { name, step: run.step }) + (run.error ? `\n${run.error}` : "");
      toast(app, SEVERITY[state], text, state === "finished" ? 8000 : 20000);
      if (document.hidden && globalThis.Notification?.permission === "granted") new Notification(t("title"), { body: text, tag: name });
    }
  });
}
