// What the page says, in the language that ComfyUI is set to. The texts are in locales/<language>/main.json, under
// "loraFoundry"; English stands in for what another language lacks.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

let texts = {};
let english = {};

/** Reads the texts; everything that shows some waits for this. */
export const textsRead = read();

async function read() {
  const all = await api.fetchApi("/i18n").then((answer) => (answer.ok ? answer.json() : {}), () => ({}));
  const language = app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? navigator.language.split("-")[0];
  english = all.en?.loraFoundry ?? {};
  texts = all[language]?.loraFoundry ?? english;
}

/**
 * The text of a key such as "runs.pause", with `{name}` in it replaced by values.
 *
 * @param {string} key its place in main.json
 * @param {object} values what replaces the names in braces; `count` chooses between "one" and "other" where a text has both
 */
export function t(key, values = {}) {
  const found = lookup(texts, key) ?? lookup(english, key) ?? key;
  const text = typeof found === "object" ? (values.count === 1 ? found.one : found.other) : found;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

function lookup(tree, key) {
  return key.split(".").reduce((branch, part) => branch?.[part], tree);
}
