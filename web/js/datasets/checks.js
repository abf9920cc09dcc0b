// What the checks found, the worst first; a finding jumps to its pictures, one after the other.
import { el } from "../dom.js";
import { post } from "../server.js";
import { t } from "../text.js";
import { button } from "./tools.js";

const MARKS = { error: "✖", warning: "⚠", note: "•" };

export class Checks extends EventTarget {
  /** Fires `jump` (`detail`: an item), `only` (items) and `found` when other findings are there. */
  constructor(id) {
    super();
    this.id = id;
    this.findings = [];
    this.items = new Map(); // messages by item
    this.state = el("div", { class: "lf-state", role: "status" });
    this.start = button("data.check", () => this.check());
    this.list = el("div", { class: "lf-findings" });
    this.root = el("div", { class: "lf-checks", hidden: true }, el("div", { class: "lf-row" }, this.start, this.state), this.list);
  }

  async check() {
    this.start.disabled = true;
    try {
      this.show(await post(["datasets", this.id, "check"]));
    } catch (error) {
      this.start.disabled = false;
      this.state.textContent = error.message;
    }
  }

  progress({ done, of }) {
    this.state.textContent = t("data.checking", { done, of });
  }

  /** What the server knows of the latest check. */
  show({ checking, findings, error }) {
    this.start.disabled = checking;
    this.state.textContent = checking ? t("data.check_runs") : error ?? (findings ? t("data.found", { count: findings.length }) : t("data.unchecked"));
    // The same findings come again (the answer, then the event): who is going through the pictures keeps place and focus.
    if (!findings || JSON.stringify(findings) === JSON.stringify(this.findings)) return;
    this.findings = findings;
    this.items = new Map();
    for (const { items, message } of findings) for (const item of items) this.items.set(item, [...(this.items.get(item) ?? []), message]);
    this.list.replaceChildren(...findings.map((finding) => this.entry(finding)));
    this.dispatchEvent(new Event("found"));
  }

  entry({ severity, message, items }) {
    let next = 0;
    const place = el("span", { class: "lf-count" });
    const jump = () => {
      if (!items.length) return;
      this.dispatchEvent(new CustomEvent("jump", { detail: items[next] }));
      place.textContent = items.length > 1 ? `${next + 1} / ${items.length}` : "";
      next = (next + 1) % items.length;
    };
    const only = items.length > 1 && el("button", {
      type: "button", class: "lf-link", on: { click: () => this.dispatchEvent(new CustomEvent("only", { detail: items })) },
    }, t("data.show_these", { count: items.length }));
    return el("div", { class: `lf-finding lf-${severity}` },
      el("button", { type: "button", class: "lf-jump", disabled: !items.length, on: { click: jump } }, `${MARKS[severity]} ${message} `, place), only);
  }
}
