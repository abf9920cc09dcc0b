// Elements of the page. Texts are always texts: nothing here parses markup.

/**
 * Makes an element.
 *
 * @param {string} tag its name
 * @param {object} properties `class`, `title`, `dataset`, `style` (an object), `on` (listeners by event), any attribute
 *     (null and false leave it out); other names that the element has as properties are set as such
 * @param {...(Node|string|number|null|undefined|Array)} children nodes and texts
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for SVG; all properties are attributes. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat(Infinity));
  return element;
}

/** Loads the pack's style sheet once. */
export function loadStyles() {
  const address = new URL("../css/lora_foundry.css", import.meta.url).href;
  if (document.querySelector(`link[href="${address}"]`)) return;
  document.head.append(el("link", { rel: "stylesheet", href: address }));
}
