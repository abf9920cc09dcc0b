// The picture that has the focus: large, with its mask and control images beside it, its clip, and its caption to edit.
import { el } from "../dom.js";
import { address, post } from "../server.js";
import { t } from "../text.js";
import { pictureOf } from "./grid.js";

const WAIT = 200; // milliseconds without a key until the encoder's text is asked for

export class PictureView {
  constructor(rows, trigger) {
    this.rows = rows;
    this.trigger = trigger; // gives {trigger, placement}
    this.shown = "picture";
    this.media = el("div", { class: "lf-media" });
    this.beside = el("div", { class: "lf-beside" });
    this.name = el("div", { class: "lf-file", dir: "auto" });
    this.caption = el("textarea", {
      class: "lf-caption", rows: 5, spellcheck: true, dir: "auto", "aria-label": t("data.caption"),
      on: { blur: () => this.keep(), input: () => this.told(), keydown: (event) => this.pressed(event) },
    });
    this.problem = el("div", { class: "lf-problem" });
    this.encoder = el("div", { class: "lf-encoder", dir: "auto", "aria-live": "polite" });
    this.inner = el("div", { class: "lf-picture", hidden: true }, this.media, this.beside, this.name, this.caption, this.problem,
      el("div", { class: "lf-label" }, t("data.encoder_reads")), this.encoder);
    this.root = el("div", {}, this.inner); // a tab, which is hidden for reasons of its own
    this.seen = ""; // the caption that is typed over
    rows.typing.push(() => (this.typed ? this.row.item : null));
  }

  get typed() {
    return Boolean(this.row) && this.caption.value !== this.seen;
  }

  show(row) {
    if (this.row?.item !== row?.item) {
      this.keep();
      this.shown = "picture";
    }
    const another = this.row?.item !== row?.item || this.row?.version !== row?.version;
    this.row = row;
    this.inner.hidden = !row;
    if (!row) return;
    const size = row.clip ? `${row.width} × ${row.height}, ${t("data.frames", { count: row.clip.frames })}` : `${row.width} × ${row.height}`;
    this.name.textContent = `${row.file} (${size})`;
    if (document.activeElement !== this.caption || another || !this.typed) this.caption.value = this.seen = row.caption;
    this.caption.readOnly = !row.editable;
    this.caption.placeholder = row.fallback ?? t("data.no_caption");
    this.problem.textContent = row.problem ?? "";
    if (another) {
      this.showMedia();
      const others = [...(row.mask ? ["mask"] : []), ...Array.from({ length: row.controls }, (_, k) => `control${k + 1}`)];
      const shown = others.length ? ["picture", ...others] : [];
      this.beside.replaceChildren(...shown.map((what) => this.button(what)));
    }
    this.told();
  }

  showMedia() {
    const { row } = this;
    if (row.clip && this.shown === "picture") {
      if (row.clip.plays && row.clip.video) {
        const source = address(["datasets", this.rows.id, "items", row.item, "clip"], { t: row.version });
        this.media.replaceChildren(el("video", { src: source, controls: true, loop: true, muted: true, autoplay: true }));
        return;
      }
      this.media.replaceChildren(el("img", { alt: row.file, src: pictureOf(this.rows.id, row, 512, "picture", true) }));
      return;
    }
    this.media.replaceChildren(el("img", { alt: row.file, src: pictureOf(this.rows.id, row, 768, this.shown) }));
  }

  button(what) {
    const number = what.startsWith("control") ? what.slice("control".length) : "";
    const title = number ? t("data.control", { number }) : t(`data.${what}`);
    const show = () => {
      this.shown = what;
      this.showMedia();
    };
    return el("button", { type: "button", class: "lf-thumb", title, on: { click: show, focus: show } },
      el("img", { alt: "", src: pictureOf(this.rows.id, this.row, 128, what) }), title);
  }

  pressed(event) {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      this.caption.value = this.row.caption;
      this.onleave?.();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      this.onleave?.();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Writes what was typed, if anything was. */
  keep() {
    const { row, caption } = this;
    const text = caption.value;
    if (row?.editable && text.trim() !== row.caption) this.rows.change([row.item], () => text);
    this.seen = text;
    this.rows.catchUp();
  }

  /** What the text encoder will read of what stands there now. */
  told() {
    clearTimeout(this.waiting);
    const caption = this.caption.value.trim() || this.row.fallback || "";
    const { trigger, placement } = this.trigger();
    const asked = JSON.stringify([caption, trigger, placement]);
    if (asked === this.asked) return;
    this.waiting = setTimeout(async () => {
      this.asked = asked;
      try {
        const { texts } = await post(["datasets", this.rows.id, "texts"], { captions: [caption], trigger, placement });
        if (this.asked !== asked) return;
        this.encoder.replaceChildren(...marked(texts[0], trigger));
      } catch (error) {
        this.encoder.textContent = error.message;
      }
    }, WAIT);
  }

  close() {
    this.keep();
    clearTimeout(this.waiting);
    this.media.replaceChildren(); // a clip stops
  }
}

/** A text with a word in it marked. */
function marked(text, word) {
  const at = word ? text.toLowerCase().indexOf(word.toLowerCase()) : -1;
  if (at < 0) return [text];
  return [text.slice(0, at), el("mark", {}, text.slice(at, at + word.length)), ...marked(text.slice(at + word.length), word)];
}
