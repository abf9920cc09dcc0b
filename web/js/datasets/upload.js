// Files and folders that are dropped or picked: pictures and clips go through ComfyUI's own upload, captions beside them
// become captions of the pictures that they belong to.
import { api } from "../../../../scripts/api.js";
import { el } from "../dom.js";
import { get, post } from "../server.js";
import { t } from "../text.js";

const MEDIA = /\.(png|jpe?g|jfif|webp|bmp|avif|gif|mp4|m4v|mov|webm|mkv)$/i;
const CAPTION = /\.(txt|caption)$/i;
/** Whether a file of this name can be part of a data set. */
export const isUsed = (name) => MEDIA.test(name) || CAPTION.test(name);
const LONGEST = 50_000; // characters of a caption
const AT_ONCE = 3;
const PAGE = 2000;

/** Files of what was dropped, each with its folders below it: [{file, path}]. Must be called while the event is handled. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name }));
  return (await Promise.all(entries.map((entry) => inside(entry, "")))).flat();
}

async function inside(entry, above) {
  if (entry.name.startsWith(".")) return [];
  if (entry.isFile) return [{ file: await new Promise((found, failed) => entry.file(found, failed)), path: above + entry.name }];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives a hundred at a time
    const part = await new Promise((read, failed) => reader.readEntries(read, failed));
    if (!part.length) break;
    found.push(...part);
  }
  return (await Promise.all(found.map((one) => inside(one, `${above}${entry.name}/`)))).flat();
}

/** The folder that all files lie in, if it is one: a dropped folder's name. */
export function commonFolder(files) {
  const [first] = files[0]?.path.split("/") ?? [];
  return files.length && files.every(({ path }) => path.startsWith(`${first}/`)) ? first : null;
}

/**
 * Puts files into a data set.
 *
 * @param {object} set its `id` and `upload`, the folder below ComfyUI's input folder
 * @param {object[]} files [{file, path}]; a folder around all of them is left out
 * @param {function(number, number)} told hears how many of how many are there
 * @returns {Promise<{pictures: number, captions: number, failed: string[]}>}
 */
export async function upload(set, files, told) {
  const around = commonFolder(files);
  const below = files.map(({ file, path }) => ({ file, path: around ? path.slice(around.length + 1) : path }));
  const media = below.filter(({ path }) => MEDIA.test(path));
  const result = { pictures: 0, captions: 0, failed: [] };
  const names = new Map(); // under which name a file came to lie, by its own without suffix
  const waiting = [...media];
  const work = async () => {
    for (let one = waiting.shift(); one; one = waiting.shift()) {
      try {
        names.set(stem(one.path), await send(set, one));
        result.pictures += 1;
      } catch (error) {
        result.failed.push(`${one.path}: ${error.message}`);
      }
      told(result.pictures + result.failed.length, media.length);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  const texts = new Map();
  for (const { file, path } of below) if (CAPTION.test(path) && file.size <= LONGEST) texts.set(stem(path), await file.text());
  if (texts.size) result.captions = await captions(set, texts, names, result);
  return result;
}

async function send(set, { file, path }) {
  const folder = path.includes("/") ? `/${path.slice(0, path.lastIndexOf("/"))}` : "";
  const body = new FormData();
  body.append("image", file, file.name);
  body.append("type", "input");
  body.append("subfolder", set.upload + folder);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!answer.ok) throw new Error(answer.statusText || String(answer.status));
  const { name } = await answer.json();
  return stem(folder ? `${folder.slice(1)}/${name}` : name);
}

/** Writes captions beside pictures, those that were there already included; a caption that is there stays. */
async function captions(set, texts, names, result) {
  const edits = [];
  for (let after = 0, total = 1; after < total; after += PAGE) {
    const page = await get(["datasets", set.id, "items"], { after, count: PAGE });
    total = page.total;
    const byName = new Map([...texts].map(([name, text]) => [names.get(name) ?? name, text]));
    for (const { item, file, caption } of page.items) {
      const text = byName.get(stem(file))?.trim();
      if (text && !caption) edits.push({ item, before: "", caption: text });
    }
  }
  for (let first = 0; first < edits.length; first += 500) {
    const part = edits.slice(first, first + 500);
    await post(["datasets", set.id, "captions"], { edits: part }).catch((error) => result.failed.push(error.message));
  }
  return edits.length;
}

function stem(path) {
  return path.replace(/\.[^./]*$/, "");
}

/** What was uploaded, in a sentence. */
export function uploaded({ pictures, captions: count, failed }) {
  const told = t("data.uploaded", { pictures, captions: count });
  return failed.length ? `${told} ${t("data.upload_failed", { count: failed.length, first: failed[0] })}` : told;
}

/** Makes an element take files that are dropped on it; ComfyUI, which would open them as workflows, never hears of it. */
export function dropZone(element, take) {
  let depth = 0;
  const on = (event, listener) => element.addEventListener(event, (happened) => {
    if (!happened.dataTransfer?.types.includes("Files")) return;
    happened.preventDefault();
    happened.stopPropagation();
    listener(happened);
    element.classList.toggle("lf-dropping", depth > 0);
  });
  on("dragenter", () => { depth += 1; });
  on("dragover", () => {});
  on("dragleave", () => { depth -= 1; });
  on("drop", (event) => {
    depth = 0;
    droppedFiles(event.dataTransfer).then((files) => files.length && take(files));
  });
}

/** A button that picks files, or a folder. */
export function picker(key, folder, take) {
  const input = el("input", { type: "file", multiple: true, hidden: true, webkitdirectory: folder, on: {
    change: () => {
      const files = [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
      input.value = "";
      if (files.length) take(files);
    },
  } });
  return [el("button", { type: "button", on: { click: () => input.click() } }, t(key)), input];
}
