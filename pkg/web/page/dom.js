// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// el makes an element. Whatever comes from the cluster is a child or an attribute here, so
// it is text and never HTML.
export function el(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") e.addEventListener(key, value);
    else e.setAttribute(key, value === true ? "" : String(value));
  }
  e.append(...children.flat(Infinity).filter((c) => c !== undefined && c !== null && c !== false));
  return e;
}

// keyed makes the children of a container one for each item, and makes again only those
// whose item has changed: the others keep the focus.
export function keyed(container, items, key, make) {
  const before = container.keyed ?? new Map();
  const now = new Map();
  let at = container.firstElementChild;
  for (const item of items) {
    const k = key(item);
    const text = JSON.stringify(item);
    const old = before.get(k);
    let node = old?.node;
    if (!old || old.text !== text) {
      node = make(item);
      node.dataset.key = k;
      if (old) {
        const focused = focusedIn(old.node);
        if (at === old.node) at = at.nextElementSibling;
        old.node.replaceWith(node);
        if (focused >= 0) focusables(node)[focused]?.focus();
      }
    }
    before.delete(k);
    now.set(k, { text, node });
    if (node === at) at = at.nextElementSibling;
    else container.insertBefore(node, at);
  }
  for (const { node } of before.values()) node.remove();
  container.keyed = now;
}

const focusables = (node) => [...node.querySelectorAll("a, button, [tabindex]")];
const focusedIn = (node) => focusables(node).indexOf(document.activeElement);

// get asks the server. The error has what it says, and gone is true if there is no such pool.
export async function get(path, query = {}) {
  const answer = await fetch(path + "?" + new URLSearchParams(query), { cache: "no-store" });
  if (answer.ok) return answer.json();
  const text = await answer.text();
  let said = { error: text.trim() };
  try { said = JSON.parse(text); } catch { /* not an answer of the page's server */ }
  throw Object.assign(new Error(said.error), { gone: said.gone, refused: answer.status === 403 });
}

export const number = (n) => (n >= Number.MAX_SAFE_INTEGER ? "more than 9×10¹⁵" : n.toLocaleString("en-US"));

export const clock = (time) => new Date(time).toLocaleTimeString("en-GB");

// age is how long ago something was, as kubectl says it.
export function age(time) {
  let s = Math.max(0, Math.round((Date.now() - new Date(time)) / 1000));
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["m", 60]]) {
    if (s >= 2 * length) return Math.floor(s / length) + unit;
  }
  return s + "s";
}

// when shows a time as its age, which the page keeps up to date.
export const when = (time) => el("time", { datetime: time, title: new Date(time).toLocaleString("en-GB") }, age(time));

export function refreshAges() {
  for (const e of document.querySelectorAll("time[datetime]")) {
    const text = age(e.dateTime);
    if (e.textContent !== text) e.textContent = text;
  }
}

// command shows a command, and a button that copies it.
export function command(text) {
  const said = el("span", { class: "unseen", role: "status" });
  const button = el("button", { type: "button", class: "copy", click: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      said.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; said.textContent = ""; }, 2000);
  } }, "Copy");
  const code = el("code", {}, text.split(" ").map((word, i) => [i > 0 && " ", el("span", {}, word)])); // no line ends inside of "-n"
  return el("div", { class: "command" }, code, button, said);
}
