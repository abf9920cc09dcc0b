// Changes of captions as functions of a caption: comma-separated tags, and plain search and replace.

/** A caption's tags. */
export function tagsOf(caption) {
  return caption.split(",").map((tag) => tag.trim()).filter(Boolean);
}

const same = (tag) => (other) => other.toLowerCase() === tag.toLowerCase();

/** The caption with tags that it lacks, at its "start" or "end". */
export function withTags(caption, tags, place) {
  const own = tagsOf(caption);
  const fresh = tags.filter((tag) => !own.some(same(tag)));
  if (!fresh.length) return caption;
  return (place === "start" ? [...fresh, ...own] : [...own, ...fresh]).join(", ");
}

/** The caption without tags. */
export function withoutTags(caption, tags) {
  const own = tagsOf(caption);
  const left = own.filter((tag) => !tags.some(same(tag)));
  return left.length === own.length ? caption : left.join(", ");
}

/** The caption with those of the tags that it has at its "start" or "end". */
export function movedTags(caption, tags, place) {
  const own = tagsOf(caption);
  const moved = tags.map((tag) => own.find(same(tag))).filter((tag) => tag !== undefined);
  if (!moved.length) return caption;
  const rest = own.filter((tag) => !moved.includes(tag));
  return (place === "start" ? [...moved, ...rest] : [...rest, ...moved]).join(", ");
}

/** How many captions have each tag, the most frequent first. */
export function tagCounts(captions) {
  const counts = new Map();
  for (const caption of captions) for (const tag of new Set(tagsOf(caption))) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  return [...counts].sort((one, other) => other[1] - one[1]);
}

const LETTER = /[\p{L}\p{N}_]/u;

/**
 * Places of a text in a caption, as it is written.
 *
 * @param {object} how `matchCase`, `wholeWords`
 */
export function placesOf(caption, text, { matchCase = false, wholeWords = false } = {}) {
  if (!text) return [];
  // letters whose other case has another length ("İ") would shift all places behind them
  const plain = (value) => (matchCase ? value : Array.from(value, (letter) => (letter.toLowerCase().length === letter.length ? letter.toLowerCase() : letter)).join(""));
  const [within, wanted] = [plain(caption), plain(text)];
  const places = [];
  for (let at = within.indexOf(wanted); at >= 0; at = within.indexOf(wanted, at + wanted.length)) {
    const [before, after] = [caption[at - 1] ?? "", caption[at + wanted.length] ?? ""];
    const whole = !(LETTER.test(before) && LETTER.test(caption[at])) && !(LETTER.test(after) && LETTER.test(caption[at + wanted.length - 1]));
    if (!wholeWords || whole) places.push(at);
  }
  return places;
}

/** The caption with another text in all of these places. */
export function replaced(caption, text, other, how) {
  let result = "";
  let end = 0;
  for (const at of placesOf(caption, text, how)) {
    result += caption.slice(end, at) + other;
    end = at + text.length;
  }
  return result + caption.slice(end);
}
