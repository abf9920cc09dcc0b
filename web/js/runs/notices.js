// A notice when a run ends or fails, also one that ended while the socket was lost; on the desktop too for who wants it.
import { app } from "../../../../scripts/app.js";
import { toast } from "../dialog.js";
import { el } from "../dom.js";
import { t } from "../text.js";
import { stateOf } from "./look.js";
import { atWork, runOf, subscribe } from "./store.js";

const SEVERITY = { finished: "success", failed: "error", crashed: "error" };
const KEPT = "lora-foundry.notices"; // of this browser, as is its permission

/** Tells of runs that were at work and have ended. */
export function noticeEnds() {
  subscribe(({ changed, before }) => {
    for (const name of changed) {
      const [known, run] = [before.get(name), runOf(name)];
      if (!known || !run || !atWork(known) || atWork(run)) continue;
      const state = stateOf(run);
      if (!SEVERITY[state]) continue; // paused or stopped: somebody asked for it
      const text = t(`runs.ended.${state}`, { name, step: run.step }) + (run.error ? `\n${run.error}` : "");
      toast(app, SEVERITY[state], text, state === "finished" ? 8000 : 20000);
      if (document.hidden && onDesktop()) new Notification(t("title"), { body: text, tag: name }); // once, whichever pages tell it
    }
  });
}

function onDesktop() {
  return globalThis.Notification?.permission === "granted" && localStorage.getItem(KEPT) === "on";
}

/** The switch for notices on the desktop; null where the browser has none. */
export function noticeSwitch() {
  if (!globalThis.Notification || !isSecureContext) return null;
  const button = el("button", { type: "button", title: t("runs.notify"), ariaLabel: t("runs.notify") });
  const show = () => {
    button.className = `lf-icon pi ${onDesktop() ? "pi-bell" : "pi-bell-slash"}`;
    button.ariaPressed = String(onDesktop());
  };
  button.addEventListener("click", async () => {
    const wanted = !onDesktop();
    // browsers ask only where the user has clicked
    if (wanted && (await Notification.requestPermission()) !== "granted") toast(app, "warn", t("runs.notify_denied"), 8000);
    localStorage.setItem(KEPT, wanted ? "on" : "off");
    show();
  });
  show();
  return button;
}
