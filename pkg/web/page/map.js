// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

import { el, number } from "./dom.js";
import { parse, format, shared } from "./address.js";

// What an address is: the letters that the server sends. Each looks different without
// colours, too: by its brightness, a pattern or a sign.
export const STATES = {
  h: { name: "in use", colour: "held" },
  r: { name: "reserved", colour: "reserved", sign: "R" },
  c: { name: "cooling", colour: "cooling", sign: "C" },
  l: { name: "looks leaked", colour: "leaked", sign: "!" },
  d: { name: "held back", colour: "doubtful", sign: "?" },
  f: { name: "free", colour: "free" },
  u: { name: "in no block", colour: "unassigned", pattern: "dot" },
  x: { name: "excluded", colour: "excluded", pattern: "lines" },
  g: { name: "gateway", colour: "gateway", sign: "G" },
};

const COLOURS = ["ground", "text", "faint", "line", "focus", "held", "reserved", "cooling", "leaked", "doubtful", "free", "unassigned", "excluded", "gateway", "pattern", "on-dark", "on-light"];

export function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
}

// decode turns "3f1h" into "fffh".
export const decode = (cells) => cells.replace(/(\d+)(\D)/g, (_, n, letter) => letter.repeat(Number(n)));

// drawCell draws one address as a square of a size.
export function drawCell(ctx, c, x, y, size, letter) {
  const state = STATES[letter];
  const edge = size >= 8 ? 1 : 0;
  const inner = size - edge;
  ctx.fillStyle = c[state.colour];
  ctx.fillRect(x, y, inner, inner);
  if (size < 8) return;
  if (letter === "f") {
    ctx.strokeStyle = c.line;
    ctx.lineWidth = 1;
    ctx.strokeRect(x + 0.5, y + 0.5, inner - 1, inner - 1);
  }
  ctx.strokeStyle = ctx.fillStyle = c.pattern;
  if (state.pattern === "dot") {
    const r = Math.max(1, size / 12);
    ctx.beginPath();
    ctx.arc(x + inner / 2, y + inner / 2, r, 0, 7);
    ctx.fill();
  }
  if (state.pattern === "lines") {
    ctx.save();
    ctx.beginPath();
    ctx.rect(x, y, inner, inner);
    ctx.clip();
    ctx.beginPath();
    for (let d = -inner; d < inner; d += 5) {
      ctx.moveTo(x + d, y + inner);
      ctx.lineTo(x + d + inner, y);
    }
    ctx.stroke();
    ctx.restore();
  }
  if (state.sign && size >= 10) {
    ctx.fillStyle = letter === "d" || letter === "r" ? c["on-light"] : c["on-dark"];
    ctx.font = `700 ${Math.round(size * 0.62)}px ${FONT}`;
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.fillText(state.sign, x + inner / 2, y + inner / 2 + 0.5);
  }
}

const FONT = 'system-ui, "Segoe UI", Roboto, sans-serif';
const LABEL = 15; // the height of a part's label

// AddressMap draws the parts of a pool, or its addresses. One of them is the current one:
// the pointer and the arrow keys move it.
//
//   moved(item)   it has become the current one
//   opened(item)  Enter was pressed on it, or it was clicked
//   back()        Escape was pressed
export class AddressMap {
  constructor({ moved, opened, back, describe }) {
    Object.assign(this, { moved, opened, back, describe });
    this.canvas = el("canvas", { tabindex: 0, role: "application", "aria-roledescription": "map of addresses", "aria-describedby": "details" });
    this.tip = el("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.element = el("div", { class: "map" }, this.canvas, this.tip);
    this.items = [];
    this.current = -1;
    this.ctx = this.canvas.getContext("2d");
    this.canvas.addEventListener("keydown", (e) => this.key(e));
    this.canvas.addEventListener("focus", () => { if (this.current < 0) this.move(0); else this.outline(); });
    this.canvas.addEventListener("blur", () => { this.tip.hidden = true; this.outline(); });
    this.canvas.addEventListener("pointermove", (e) => this.point(e));
    this.canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    this.canvas.addEventListener("click", (e) => { this.point(e); if (this.at(e) >= 0) this.opened(this.items[this.current]); });
    new ResizeObserver(() => { if (this.data && this.element.clientWidth !== this.width) this.draw(); }).observe(this.element);
    this.media = matchMedia("(prefers-color-scheme: dark)");
    this.media.addEventListener("change", () => { if (this.data) this.draw(); });
  }

  // show draws a map; of one that is shown already, only what has changed.
  show(data) {
    const same = this.data && this.data.from === data.from && this.data.to === data.to;
    const before = this.items;
    const address = this.items[this.current]?.from;
    this.data = data;
    this.v6 = data.from?.includes(":");
    this.whole = !data.parts;
    this.items = data.parts ? data.parts.map((p) => ({ ...p, letters: p.cells && decode(p.cells) })) : this.cellsOf(data);
    this.cut = data.parts ? shared(data.parts.map((p) => p.from)).length : 0;
    if (same && before.length === this.items.length && this.layout && before.every((b, i) => b.from === this.items[i].from)) {
      const changed = this.items.map((_, i) => i).filter((i) => this.text(before[i]) !== this.text(this.items[i]));
      changed.forEach((i) => this.drawItem(i));
      this.drawn(changed.length);
      return;
    }
    this.current = this.items.findIndex((i) => i.from === address);
    this.draw();
  }

  text(item) { return JSON.stringify(item, (key, value) => (key === "number" ? undefined : value)); }

  cellsOf(data) {
    const first = data.from ? parse(data.from) : 0n;
    return [...decode(data.cells ?? "")].map((letter, i) => {
      const n = first + BigInt(i);
      return { letter, number: n, from: format(n, this.v6) };
    });
  }

  // select makes the item with an address the current one.
  select(from) {
    const i = this.items.findIndex((item) => item.from === from);
    if (i >= 0) this.move(i);
  }

  draw() {
    this.width = this.element.clientWidth;
    this.layout = this.whole ? this.layOutCells(this.width) : this.layOutParts(this.width);
    const { height } = this.layout;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.width = this.width + "px";
    this.canvas.style.height = height + "px";
    this.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.colours = colours();
    this.ctx.clearRect(0, 0, this.width, height);
    if (this.whole) this.drawRows();
    this.items.forEach((_, i) => this.drawItem(i));
    this.outline();
    this.drawn(this.items.length);
  }

  // drawn says how many items were drawn last.
  drawn(n) { this.canvas.dataset.drawn = n; }

  // layOutCells places addresses in rows, each with the address that it begins with.
  layOutCells(width) {
    const rows = this.v6 ? 62 : 46;
    const columns = [32, 16, 8].find((n) => width - rows >= n * 20 && this.items.length > n) ?? 8;
    const size = Math.max(14, Math.min(30, Math.floor((width - rows) / columns)));
    return { left: rows, columns, w: size, h: size, size, height: Math.ceil(this.items.length / columns) * size + 2 };
  }

  // layOutParts chooses the largest size at which all parts are seen without much scrolling.
  layOutParts(width) {
    const longest = Math.max(...this.items.map((p) => p.letters?.length ?? 0));
    const n = this.items.length;
    const blocks = this.items.some((p) => p.node);
    if (!longest) {
      const w = n > 400 ? 17 : Math.min(168, width);
      const h = n > 400 ? 17 : 54;
      const columns = Math.max(1, Math.floor((width + 10) / w));
      return { left: 0, columns, w, h, compact: n > 400, height: Math.ceil(n / columns) * h + 2 };
    }
    const across = longest <= 4 ? longest : Math.ceil(Math.sqrt(longest));
    const down = Math.ceil(longest / across);
    let best;
    for (const size of [14, 12, 10, 8, 6, 5, 4, 3]) {
      const w = Math.max(across * size, blocks ? 48 : 44) + 8;
      const h = down * size + LABEL + 9;
      const columns = Math.max(1, Math.floor((width + 8) / w));
      best = { left: 0, columns, w, h, size, across, height: Math.ceil(n / columns) * h + 2 };
      if (best.height <= 820) break;
    }
    return best;
  }

  place(i) {
    const { left, columns, w, h } = this.layout;
    return [left + (i % columns) * w, Math.floor(i / columns) * h + 1];
  }

  drawRows() {
    const { columns, size, left } = this.layout;
    this.ctx.font = `11px ${FONT}`;
    this.ctx.textBaseline = "middle";
    this.ctx.textAlign = "right";
    this.ctx.fillStyle = this.colours.faint;
    for (let i = 0; i < this.items.length; i += columns) {
      const text = this.v6 ? "…:" + (this.items[i].number & 0xffffn).toString(16) : "." + this.items[i].from.split(".").slice(-2).join(".");
      this.ctx.fillText(text, left - 8, this.place(i)[1] + size / 2);
    }
  }

  drawItem(i) {
    const [x, y] = this.place(i);
    const { w, h, size, compact } = this.layout;
    const item = this.items[i];
    this.ctx.clearRect(x - 1, y - 1, w, h);
    if (this.whole) drawCell(this.ctx, this.colours, x, y, size, item.letter);
    else if (compact) this.drawLevel(item, x, y, w - 3);
    else this.drawPart(item, x + 1, y + 1, w - 9, h - 9);
    if (i === this.current) this.ring(i);
  }

  // drawPart draws a part with its name, and below it its addresses or how full it is.
  drawPart(p, x, y, w, h) {
    const { ctx, colours: c } = this;
    const marks = [[p.leaked, "!", c.leaked], [p.doubtful, "?", c.doubtful]].filter(([n]) => n);
    ctx.textBaseline = "alphabetic";
    ctx.textAlign = "right";
    ctx.font = `700 10px ${FONT}`;
    let room = w;
    for (const [n, sign, colour] of marks.reverse()) {
      ctx.fillStyle = colour;
      ctx.fillText(sign + n, x + room, y + 10);
      room -= ctx.measureText(sign + n).width + 4;
    }
    ctx.textAlign = "left";
    ctx.font = `${p.unassigned ? "italic " : ""}10px ${FONT}`;
    ctx.fillStyle = p.node || !p.unassigned ? c.text : c.faint;
    ctx.fillText(this.fit(this.label(p), room), x, y + 10);
    const top = y + LABEL;
    if (p.letters) this.drawMosaic(p.letters, x, top);
    else this.drawBar(p, x, top, w, this.layout.size ? h - LABEL : 10);
    if (!p.letters && !this.layout.size) {
      ctx.font = `10px ${FONT}`;
      ctx.fillStyle = c.faint;
      ctx.fillText(this.fit(`${number(p.held)} held`, w), x, top + 23);
    }
  }

  label(p) {
    if (p.node) return p.node + (p.earlier ? " (earlier)" : "");
    if (p.unassigned) return "no block";
    return p.from.slice(this.cut) || p.from;
  }

  // fit cuts a text at its beginning: names differ at the end.
  fit(text, width) {
    if (this.ctx.measureText(text).width <= width) return text;
    for (let i = 1; i < text.length; i++) {
      if (this.ctx.measureText("…" + text.slice(i)).width <= width) return "…" + text.slice(i);
    }
    return "";
  }

  drawMosaic(letters, x, y) {
    const { size, across } = this.layout;
    if (size >= 8) {
      for (let i = 0; i < letters.length; i++) drawCell(this.ctx, this.colours, x + (i % across) * size, y + Math.floor(i / across) * size, size, letters[i]);
      return;
    }
    for (let i = 0; i < letters.length;) { // one rectangle for equal neighbours
      const end = Math.min(letters.length, (Math.floor(i / across) + 1) * across);
      let j = i + 1;
      while (j < end && letters[j] === letters[i]) j++;
      this.ctx.fillStyle = this.colours[STATES[letters[i]].colour];
      this.ctx.fillRect(x + (i % across) * size, y + Math.floor(i / across) * size, (j - i) * size, size);
      i = j;
    }
  }

  // drawBar shows how full a part is; a single address that is held is seen.
  drawBar(p, x, y, w, h) {
    const { ctx, colours: c } = this;
    ctx.fillStyle = p.unassigned ? c.unassigned : c.free;
    ctx.fillRect(x, y, w, h);
    ctx.fillStyle = c.held;
    if (p.held) ctx.fillRect(x, y, Math.max(2, Math.min(1, p.held / Math.max(1, p.size)) * w), h);
    ctx.strokeStyle = c.line;
    ctx.lineWidth = 1;
    if (p.unassigned) ctx.setLineDash([3, 3]);
    ctx.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
    ctx.setLineDash([]);
  }

  // drawLevel is a part of very many: a square that fills from below, with a sign if
  // something leaks.
  drawLevel(p, x, y, size) {
    const { ctx, colours: c } = this;
    ctx.fillStyle = p.unassigned ? c.unassigned : c.free;
    ctx.fillRect(x, y, size, size);
    const filled = p.held ? Math.max(2, Math.round(Math.min(1, p.held / Math.max(1, p.size)) * size)) : 0;
    ctx.fillStyle = c.held;
    ctx.fillRect(x, y + size - filled, size, filled);
    if (p.leaked || p.doubtful) drawCell(ctx, c, x + 1, y + 1, size - 1, p.leaked ? "l" : "d");
    ctx.strokeStyle = c.line;
    ctx.lineWidth = 1;
    ctx.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
  }

  ring(i) {
    const [x, y] = this.place(i);
    const { w, h, compact } = this.layout;
    const gap = this.whole ? 1 : compact ? 2 : 7;
    this.ctx.strokeStyle = this.colours.focus;
    this.ctx.lineWidth = 2;
    this.ctx.strokeRect(x, y, w - gap - (this.whole ? 0 : 1), h - gap);
  }

  outline() { if (this.current >= 0 && this.items[this.current]) this.drawItem(this.current); }

  move(i) {
    if (!this.layout || i < 0 || i >= this.items.length) return;
    const old = this.current;
    this.current = i;
    if (old !== i && old >= 0 && this.items[old]) {
      this.drawItem(old);
      this.neighbours(old);
    }
    this.drawItem(i);
    this.moved(this.items[i]);
  }

  // neighbours repairs what the ring of an item had covered.
  neighbours(i) {
    const { columns } = this.layout;
    for (const j of [i - 1, i + 1, i - columns, i + columns, i - columns - 1, i - columns + 1, i + columns - 1, i + columns + 1]) if (this.items[j] && j !== this.current) this.drawItem(j);
  }

  at(e) {
    if (!this.layout) return -1;
    const box = this.canvas.getBoundingClientRect();
    const { left, columns, w, h } = this.layout;
    const column = Math.floor((e.clientX - box.left - left) / w);
    const row = Math.floor((e.clientY - box.top) / h);
    const i = row * columns + column;
    return column < 0 || column >= columns || row < 0 || i >= this.items.length ? -1 : i;
  }

  point(e) {
    const i = this.at(e);
    if (i < 0) {
      this.tip.hidden = true;
      return;
    }
    if (i !== this.current) this.move(i);
    this.showTip(i);
  }

  showTip(i) {
    const [x, y] = this.place(i);
    this.tip.replaceChildren(...this.describe(this.items[i]).map((line, n) => el(n ? "div" : "strong", {}, line)));
    this.tip.hidden = false;
    const width = this.tip.offsetWidth;
    this.tip.style.left = Math.max(0, Math.min(x, this.width - width)) + "px";
    this.tip.style.top = y + this.layout.h + 4 + "px";
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || !this.layout) return;
    const { columns } = this.layout;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[e.key];
    const last = this.items.length - 1;
    let to;
    if (step !== undefined) to = this.current < 0 ? 0 : this.current + step;
    else if (e.key === "Home") to = e.shiftKey ? 0 : this.current - (this.current % columns);
    else if (e.key === "End") to = Math.min(last, this.current - (this.current % columns) + columns - 1);
    else if (e.key === "PageUp") to = this.current % columns;
    else if (e.key === "PageDown") to = last;
    else if (e.key === "Enter" || e.key === " ") {
      e.preventDefault();
      if (this.current >= 0) this.opened(this.items[this.current]);
      return;
    } else if (e.key === "Escape" || e.key === "Backspace") {
      e.preventDefault();
      this.tip.hidden = true;
      this.back();
      return;
    } else return;
    e.preventDefault();
    if (to < 0 || to > last) return;
    this.move(to);
    this.showTip(to);
    this.scroll(to);
  }

  scroll(i) {
    const box = this.canvas.getBoundingClientRect();
    const y = box.top + this.place(i)[1];
    if (y < 0) scrollBy({ top: y - 20 });
    else if (y + this.layout.h > innerHeight) scrollBy({ top: y + this.layout.h - innerHeight + 20 });
  }

  // counts says how many addresses are in each state, of those that are drawn as such.
  counts() {
    const out = {};
    for (const item of this.items) {
      for (const letter of item.letter ?? item.letters ?? "") out[letter] = (out[letter] ?? 0) + 1;
    }
    return out;
  }
}

// legend explains the states, with how many addresses each has.
export function legend(counts) {
  const c = colours();
  return Object.entries(STATES).filter(([letter]) => counts[letter]).map(([letter, state]) => {
    const swatch = el("canvas", { width: 32, height: 32, "aria-hidden": "true" });
    const ctx = swatch.getContext("2d");
    ctx.scale(2, 2);
    drawCell(ctx, c, 0, 0, 16, letter);
    return el("li", {}, swatch, ` ${state.name} `, el("span", { class: "faint" }, number(counts[letter])));
  });
}
