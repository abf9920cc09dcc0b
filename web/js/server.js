// Requests to the pack's routes on ComfyUI's server.
import { api } from "../../../scripts/api.js";

/** What the server refused, in its own words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** `parts` of an address below /lora_foundry, each escaped. */
export function path(...parts) {
  return `/lora_foundry/${parts.map(encodeURIComponent).join("/")}`;
}

/** The address of a picture or file, for `src` and `href`. */
export function address(parts, query = {}) {
  const asked = new URLSearchParams(query).toString();
  return api.apiURL(path(...parts) + (asked ? `?${asked}` : ""));
}

/** GET, answered with JSON. */
export async function get(parts, query = {}, options = {}) {
  const asked = new URLSearchParams(query).toString();
  return answered(await api.fetchApi(path(...parts) + (asked ? `?${asked}` : ""), options));
}

/** POST of JSON, answered with JSON. */
export async function post(parts, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return answered(await api.fetchApi(path(...parts), { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answered(answer) {
  if (answer.ok) return answer.json();
  const told = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, told.error ?? answer.statusText);
}
