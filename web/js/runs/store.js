// What the page knows of the server's runs. Server and run folders are the truth: this is read when the page loads, when
// the socket is back and when a message was missed; in between the server tells what changed. Nothing here polls.
import { api } from "../../../../scripts/api.js";
import { get, post } from "../server.js";
import { t } from "../text.js";

/** By name, latest first. */
export const runs = new Map();

/** `connected`: whether the socket is open and the runs were read since; `loaded`: whether they ever were; `error`: why not. */
export const server = { connected: true, loaded: false, error: null };

const listeners = new Set();
const followers = new Set();
const words = new Map(); // what the server says of a run at work, by name
let revision = null; // of what was read; null while that may be old
let reading = null; // the request under way
let waiting = []; // messages that came meanwhile

/** States in which a run is at work or waits for it. */
const AT_WORK = ["queued", "running"];

/** Whether a run is at work or waits for its turn, in whichever process. */
export function atWork(run) {
  return Boolean(run) && AT_WORK.includes(run.state) && !run.crashed;
}

/**
 * Calls a listener with each change: `{changed: [name…], gone: [name…], before: Map, anew}`; `before` has the runs that
 * changed as they were. `anew`: everything was read, and messages may have been missed. Gives a function that ends it.
 */
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/**
 * Calls a listener with what comes of runs at work: `{name, step, steps, series}` with new points of the curves, `reload`
 * where lines were taken back, `phase`, and `samples` or `checkpoints` where there are others.
 */
export function follow(listener) {
  followers.add(listener);
  return () => followers.delete(listener);
}

export function runOf(name) {
  return runs.get(name) ?? null;
}

/** What the server says of a run at work, in a few lines; null if it has said nothing to this page. */
export function wordsOf(name) {
  return words.get(name) ?? null;
}

/** Asks something of a run: "pause", "stop", "save", "sample" or "continue". */
export function request(name, what, more = {}) {
  return post(["runs", name, "request"], { request: what, ...more });
}

/** Listens to the server and reads the runs; once for a page. */
export function start() {
  api.addEventListener("lora_foundry.runs", ({ detail }) => (reading ? waiting.push(detail) : changed(detail)));
  api.addEventListener("lora_foundry.run", ({ detail }) => followers.forEach((follower) => follower(detail)));
  api.addEventListener("lora_foundry.progress", ({ detail }) => {
    if (!detail.run || typeof detail.text !== "string") return;
    words.set(detail.run, detail.text);
    tell({ changed: [detail.run], gone: [], before: new Map([[detail.run, runOf(detail.run)]]) });
  });
  api.addEventListener("reconnecting", lost);
  api.addEventListener("reconnected", readAnew);
  window.addEventListener("online", () => api.socket?.readyState === WebSocket.OPEN && load()); // else it is yet to be back
  return load();
}

/** Reads all runs anew. */
export function load() {
  return reading ?? readAnew();
}

function readAnew() {
  const mine = read(() => reading === mine).finally(() => reading === mine && (reading = null));
  reading = mine;
  return mine;
}

async function read(current) {
  waiting = [];
  try {
    const told = await get(["runs"]);
    if (!current()) return;
    replaceAll(told);
  } catch (error) {
    if (!current()) return;
    Object.assign(server, { connected: false, error: error.message });
    revision = null; // the next message has them read again
    tell({ changed: [...runs.keys()], gone: [], before: new Map(runs) });
    return;
  }
  const missed = waiting;
  waiting = [];
  missed.forEach(changed);
}

function replaceAll(told) {
  const before = new Map(runs);
  runs.clear();
  for (const run of told.runs) runs.set(run.name, run);
  words.clear();
  const first = !server.loaded;
  Object.assign(server, { connected: true, loaded: true, error: null });
  revision = told.revision;
  const gone = [...before.keys()].filter((name) => !runs.has(name));
  tell({ changed: [...runs.keys()], gone, before: first ? new Map() : before, anew: true });
}

function changed(told) {
  if (revision !== null && told.revision <= revision) return; // was in what has been read
  if (revision === null || told.revision > revision + 1) {
    load();
    return;
  }
  revision = told.revision;
  const before = new Map();
  for (const name of told.gone ?? []) {
    if (runs.has(name)) before.set(name, runs.get(name));
    runs.delete(name);
    words.delete(name);
  }
  for (const run of told.runs) {
    if (runs.has(run.name)) before.set(run.name, runs.get(run.name));
    if (!atWork(run)) words.delete(run.name);
    runs.set(run.name, run);
  }
  tell({ changed: told.runs.map((run) => run.name), gone: told.gone ?? [], before });
}

function lost() {
  Object.assign(server, { connected: false, error: null });
  revision = reading = null; // an answer that is still awaited is of the server that was
  words.clear(); // "0:31 left" is not true of a server that may be gone
  tell({ changed: [...runs.keys()], gone: [], before: new Map(runs) });
}

/** Why what is shown may be old, as a sentence; an empty one if it is not. */
export function trouble() {
  return server.error ?? (server.connected ? "" : t("runs.no_connection"));
}

function tell(change) {
  for (const listener of listeners) {
    try {
      listener(change);
    } catch (error) {
      console.error("LoRA Foundry:", error); // one view's fault is not the others'
    }
  }
}

/** The runs as lists show them: at work first, then as the server orders them (latest first). */
export function inOrder() {
  const all = [...runs.values()].sort((one, other) => (other.updated ?? 0) - (one.updated ?? 0));
  const rank = (run) => (!atWork(run) ? 2 : run.state === "running" ? 0 : 1);
  return all.sort((one, other) => rank(one) - rank(other) || (rank(one) < 2 ? (one.place ?? 0) - (other.place ?? 0) : 0));
}
