// Dialogs over the graph: small ones that ask, and wide ones that hold a view. Esc closes both.
import { el } from "./dom.js";
import { t } from "./text.js";

/**
 * Opens a wide dialog with a view in it.
 *
 * @param {string} title
 * @param {Node} content
 * @param {() => void} [closed] is called once it is gone
 * @returns {HTMLDialogElement}
 */
export function openWide(title, content, closed) {
  const close = el("button", { class: "lf-icon pi pi-times", title: t("close"), ariaLabel: t("close"), type: "button" });
  const head = el("header", { class: "lf-dialog-head" }, el("h2", {}, title), close);
  const dialog = opened("lf-dialog lf-wide", title, [head, el("div", { class: "lf-dialog-body" }, content)], closed);
  close.addEventListener("click", () => dialog.close());
  return dialog;
}

/**
 * Asks a question.
 *
 * @param {string} title
 * @param {Array<Node|string>} body
 * @param {Array<{label: string, value: any, kind?: "primary"|"danger", title?: string}>} answers the first has the focus
 *     unless the body has a field
 * @returns {Promise<any>} the value of the answer, null if there was none; a function as value is called for it
 */
export function ask(title, body, answers) {
  return new Promise((resolve) => {
    let answer = null;
    const buttons = answers.map(({ label, value, kind, title: told }) =>
      el("button", { class: `lf-button ${kind ? `lf-${kind}` : ""}`, title: told, value: "answer", on: { click: () => (answer = value) } }, label),
    );
    const form = el("form", { method: "dialog" }, el("h2", {}, title), ...body);
    form.append(el("div", { class: "lf-answers" }, buttons, el("button", { class: "lf-button", value: "" }, t("cancel"))));
    // Enter in a field gives the first answer, as it presses the form's first button
    const dialog = opened("lf-dialog lf-ask", title, [form], () => resolve(typeof answer === "function" ? answer() : answer));
    (dialog.querySelector("input, textarea") ?? buttons[0])?.focus();
    dialog.querySelector("input[type=text]")?.select();
  });
}

function opened(name, title, children, closed) {
  const before = document.activeElement;
  const dialog = el("dialog", { class: name, ariaLabel: title }, children);
  for (const event of ["keydown", "keyup", "paste", "drop", "dragover"]) {
    dialog.addEventListener(event, (one) => one.stopPropagation()); // the graph's shortcuts stay below
  }
  dialog.addEventListener("close", () => {
    dialog.remove();
    before?.focus?.();
    closed?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * A menu that opens below a button.
 *
 * @param {HTMLButtonElement} button
 * @param {() => Array<{label: string, run: () => void, kind?: string}>} items are asked when it opens
 */
export function menuOf(button, items) {
  button.ariaHasPopup = "menu";
  button.addEventListener("click", () => {
    const menu = el("div", { class: "lf-menu", role: "menu", popover: "auto" });
    const entries = items().map(({ label, run, kind }) =>
      el("button", { class: `lf-entry ${kind ? `lf-${kind}` : ""}`, role: "menuitem", type: "button", on: { click: () => (menu.hidePopover(), run()) } }, label),
    );
    menu.append(...entries);
    menu.addEventListener("toggle", (event) => {
      if (event.newState !== "closed") return;
      menu.remove();
      if (!document.activeElement || document.activeElement === document.body) button.focus();
    });
    menu.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      event.stopPropagation();
      if (!step) return;
      event.preventDefault();
      const at = entries.indexOf(document.activeElement);
      entries[(at + step + entries.length) % entries.length].focus();
    });
    (button.closest("dialog") ?? document.body).append(menu);
    menu.showPopover();
    const place = button.getBoundingClientRect();
    menu.style.left = `${Math.max(4, Math.min(place.left, innerWidth - menu.offsetWidth - 4))}px`;
    const below = place.bottom + menu.offsetHeight + 4 < innerHeight;
    menu.style.top = `${below ? place.bottom + 2 : Math.max(4, place.top - menu.offsetHeight - 2)}px`;
    entries[0]?.focus();
  });
  return button;
}

/** Tells something in the corner of the page. */
export function toast(app, severity, detail, life = 6000) {
  app.extensionManager?.toast?.add({ severity, summary: t("title"), detail, life });
}
