// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

import { el, keyed, get, number, clock, when, command, refreshAges } from "./dom.js";
import { AddressMap, legend, STATES } from "./map.js";
import { parse } from "./address.js";

const main = document.getElementById("main");
const notes = document.getElementById("notes");
const live = document.getElementById("live");
const field = document.getElementById("text");

let state; // what the server said last
let lost; // since when it says nothing
let ended; // it does not know this browser any more
let view;

// ---- links

const enc = encodeURIComponent;
const poolLink = (p, rest = "") => `#/pool/${enc(p.namespace)}/${enc(p.kind)}/${enc(p.name)}${rest}`;
const rangeLink = (p, part) => poolLink(p, `/${part.from}-${part.to}`);
const addressLink = (p, address) => poolLink(p, `/@${address}`);
const searchLink = (text) => `#/search/${enc(text)}`;

// ---- the state of what is shown

const consequences = {
  ippools: "IPPools are not shown.", cidrpools: "CIDRPools are not shown.", ipallocations: "Who holds addresses is not shown.",
  nodes: "What leaks is not known.", pods: "What leaks is not known.",
};

function note({ kind, title, said, more }) {
  return el("div", { class: `note ${kind}` }, el("strong", {}, title), said && el("code", {}, said), more && el("div", {}, more));
}

function showState() {
  const out = [];
  const sources = state?.sources ?? [];
  const refused = sources.filter((s) => s.refused);
  const failed = sources.filter((s) => s.error && !s.refused);
  const reading = sources.filter((s) => !s.read && !s.error);
  for (const s of refused) {
    out.push({ kind: "warn", title: `You may not read ${s.resource}. ${s.read ? "What is shown of them is of " + clock(s.since) + "." : consequences[s.resource] ?? ""}`, said: s.error });
  }
  const since = failed.map((s) => s.since).sort()[0];
  if (failed.length) {
    out.push({ kind: "bad", title: `The API server has not answered since ${clock(since)}. What is shown is of that time.`, said: failed[0].error, more: "It is asked again every few seconds." });
  }
  if (ended) out.push({ kind: "bad", title: "kubectl ipam web was started again. Open the URL that it printed." });
  else if (lost) out.push({ kind: "bad", title: `kubectl ipam web has not answered since ${clock(lost)}. What is shown is of that time.` });
  keyed(notes, out, (n) => n.title, note);

  const old = ended || lost || failed.length;
  const text = old ? `old since ${clock(lost ?? since ?? state?.at ?? Date.now())}` : reading.length || !state ? "reading …" : "live";
  if (live.textContent !== text) live.textContent = text;
  live.className = old ? "old" : text === "live" ? "live" : "";
  document.body.classList.toggle("stale", Boolean(old));
  const count = document.getElementById("leaks");
  const leaks = state?.summary.leaks;
  count.textContent = leaks === undefined ? "" : number(leaks);
  count.classList.toggle("some", leaks > 0);
  document.getElementById("cluster").textContent = state?.cluster ?? "";
}

function listen() {
  const events = new EventSource("api/events");
  events.addEventListener("message", (e) => {
    state = JSON.parse(e.data);
    lost = ended = undefined;
    showState();
    refresh();
  });
  events.addEventListener("error", () => {
    lost ??= Date.now();
    ended = events.readyState === EventSource.CLOSED;
    showState();
  });
}

// ---- views: each has an element, a title, and update, which asks for what it shows

let busy, again;

// refresh updates the view; if it is asked to while it does, once more.
async function refresh() {
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  do {
    again = false;
    const updated = view;
    try {
      await updated.update();
    } catch (err) {
      if (updated === view && !lost && err.name !== "TypeError") updated.failed?.(err);
    }
    updated.element.removeAttribute("aria-busy");
  } while (again);
  busy = false;
  main.dataset.version = (Number(main.dataset.version) || 0) + 1;
}

const routes = {
  pools: () => poolsView(),
  leaks: () => leaksView(),
  search: (text) => searchView(text),
  pool: (namespace, kind, name, rest = "") => poolView({ namespace, kind, name }, rest),
};

function route() {
  let name = "pools", args = [];
  try {
    [name, ...args] = location.hash.slice(2).split("/").map(decodeURIComponent);
  } catch { /* no link of this page */ }
  if (!Object.hasOwn(routes, name)) name = "pools";
  const make = routes[name];
  const next = view?.reuse?.(name, args) ? view : make(...args);
  if (next !== view) {
    const byKey = main.contains(document.activeElement);
    view = next;
    view.element.setAttribute("aria-busy", "true");
    main.replaceChildren(view.element);
    if (byKey) view.element.querySelector("h2")?.focus();
    scrollTo(0, 0);
  }
  document.title = `${view.title()} · IP addresses`;
  for (const a of document.querySelectorAll("nav a")) {
    if (a.dataset.view === name || name === "pool" && a.dataset.view === "pools") a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  if (name !== "search" && document.activeElement !== field) field.value = "";
  refresh();
}

const heading = (...text) => el("h2", { tabindex: -1 }, ...text);
const empty = (text) => el("p", { class: "empty" }, text);
const badge = (kind, sign, text) => el("span", { class: `badge ${kind}` }, el("i", { "aria-hidden": "true" }, sign), text);

// ---- pools

const percent = (p) => (p.capacity ? Math.floor((p.used / p.capacity) * 100) : 0);

function meter(p) {
  const share = p.capacity ? Math.min(1, p.used / p.capacity) : 0;
  const bar = el("span", { class: "fill" });
  bar.style.width = (p.used ? Math.max(1.5, share * 100) : 0) + "%";
  const level = share >= 1 ? "full" : share >= 0.9 ? "high" : "";
  return el("span", { class: `meter ${level}`, role: "img", "aria-label": p.capacity ? `${percent(p)} % used` : "capacity not known" }, bar);
}

function readiness(p) {
  if (p.ready === "True") return badge("good", "✓", p.reason === "Disabled" ? "Disabled" : "Ready");
  return badge("bad", "✗", p.reason || "Not ready");
}

function remarks(p) {
  const out = [];
  if (p.ready !== "True" && p.message) out.push(el("li", { class: "bad" }, el("strong", {}, p.reason), " ", p.message));
  for (const n of p.notices ?? []) out.push(el("li", {}, el("strong", {}, n.type), " ", n.message));
  return out;
}

function poolRow(p) {
  const said = remarks(p);
  return el("tbody", { class: said.length ? "said" : "" },
    el("tr", {},
      el("th", { scope: "row" }, el("a", { href: poolLink(p) }, p.name), el("span", { class: "faint" }, `${p.namespace} · ${p.kind}`)),
      el("td", { "data-label": "Subnet", class: "address" }, p.subnet),
      el("td", { "data-label": "Use", class: "use" }, meter(p), el("span", { class: "percent" }, p.capacity === undefined || !p.known ? "" : `${percent(p)} %`)),
      el("td", { "data-label": "Held", class: "n" }, p.known ? number(p.used) : "?", el("span", { class: "faint" }, p.capacity === undefined ? " of ?" : ` of ${number(p.capacity)}`)),
      el("td", { "data-label": "Blocks", class: "n" }, number(p.blockCount), p.fullBlocks ? el("span", { class: "warn" }, ` ${number(p.fullBlocks)} full`) : ""),
      el("td", { "data-label": "Ready" }, readiness(p))),
    said.length > 0 && el("tr", { class: "remarks" }, el("td", { colspan: 6 }, el("ul", {}, said))));
}

function poolsView() {
  const summary = el("p", { class: "summary" });
  const table = el("table", { class: "pools" }, el("thead", {}, el("tr", {}, ["Pool", "Subnet", "Use", "Held", "Blocks", "Ready"].map((h, i) => el("th", { scope: "col", class: i === 3 || i === 4 ? "n" : "" }, h)))));
  const body = el("div", {});
  const rows = el("div", { class: "scroll" }, table);
  return {
    element: el("section", { class: "view" }, heading("Pools"), summary, body, rows),
    title: () => "Pools",
    async update() {
      const pools = await get("api/pools");
      const known = Boolean(state?.sources.find((s) => s.resource === "ipallocations")?.read);
      keyedBodies(table, pools.map((p) => ({ ...p, known })));
      summary.textContent = `${number(pools.length)} pools` + (known ? `, ${number(state.summary.allocations)} addresses held` : "; who holds addresses has not been read");
      rows.hidden = pools.length === 0;
      body.replaceChildren(...(pools.length === 0 && state?.sources.every((s) => s.read) ? [empty("There are no pools.")] : []));
    },
  };
}

// keyedBodies is keyed for a table, whose head stays.
function keyedBodies(table, pools) {
  table.bodies ??= { keyed: undefined };
  const container = {
    get keyed() { return table.bodies.keyed; }, set keyed(v) { table.bodies.keyed = v; },
    get firstElementChild() { return table.tHead.nextElementSibling; },
    insertBefore: (node, at) => table.insertBefore(node, at),
  };
  keyed(container, pools, (p) => `${p.namespace}/${p.kind}/${p.name}`, poolRow);
}

// ---- holders

const verdicts = { InUse: "h", Reserved: "r", Kept: "r", Cooling: "c", LooksLeaked: "l", Held: "d" };

function stateOf(f) {
  const s = STATES[verdicts[f.verdict.state]];
  return s ? badge(s.colour, s.sign ?? "\u00a0", s.name) : badge("unknown", "·", "not known");
}

// until is what ends it, without the command, which is shown by itself.
const until = (f) => f.verdict.until?.split("; if you know")[0];

const podName = (f) => (f.pod.name ? `${f.pod.namespace}/${f.pod.name}` : "");
const link = (text) => (text ? el("a", { href: searchLink(text) }, text) : "");

function holderRow(f) {
  return el("tr", {},
    el("th", { scope: "row", class: "address" }, el("a", { href: addressLink(f.pool, f.address) }, f.address)),
    el("td", { "data-label": "State" }, stateOf(f)),
    el("td", { "data-label": "Pod" }, link(podName(f))),
    el("td", { "data-label": "Interface" }, f.interface ?? ""),
    el("td", { "data-label": "Node" }, link(f.node)),
    el("td", { "data-label": "Held for", class: "n" }, when(f.heldSince)));
}

function holdersTable() {
  const body = el("tbody", {});
  const more = el("p", { class: "faint" });
  const table = el("table", { class: "holders" }, el("thead", {}, el("tr", {}, ["Address", "State", "Pod", "Interface", "Node", "Held for"].map((h) => el("th", { scope: "col", class: h === "Held for" ? "n" : "" }, h)))), body);
  const element = el("div", { hidden: true }, el("div", { class: "scroll" }, table), more);
  return { element, show(list) {
    element.hidden = list.items.length === 0;
    keyed(body, list.items, (f) => f.uid || f.namespace + "/" + f.allocation, holderRow);
    more.textContent = list.more ? `${number(list.more)} more are not listed.` : "";
  } };
}

// details are all that is known of a holder.
function details(f) {
  const facts = [
    ["Pod", link(podName(f))], ["Node", link(f.node)], ["Interface", f.interface], ["Network", f.network], ["Container", f.container && el("code", {}, f.container)],
    ["Allocation", el("code", {}, `${f.namespace}/${f.allocation}`)], ["Held for", when(f.heldSince)],
    ["", [f.requested && "requested by the pod", f.restored && "written again after a loss"].filter(Boolean).join(", ")],
    ["Why", f.verdict.message], ["Since", f.command ? when(f.verdict.since) : ""], ["Ends when", until(f)],
  ];
  return [
    el("dl", {}, facts.filter(([, value]) => value).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    f.command && el("p", { class: "faint" }, f.verdict.state === "Held" ? "If you know that the container is gone:" : "To release it now:"),
    f.command && command(f.command),
  ];
}

// ---- leaks

function leakCard(f) {
  return el("article", { class: "leak" },
    el("header", {}, el("a", { class: "address", href: addressLink(f.pool, f.address) }, f.address), stateOf(f), el("span", { class: "faint" }, `pool ${f.pool.name} · ${f.verdict.reason}`)),
    el("p", {}, f.verdict.message.charAt(0).toUpperCase() + f.verdict.message.slice(1), ". Pod ", link(podName(f)), f.node ? " on node " : "", link(f.node), ", held for ", when(f.heldSince), ", like this for ", when(f.verdict.since), "."),
    el("p", {}, until(f) && `It ends when ${until(f)}.`),
    el("p", { class: "faint" }, f.verdict.state === "Held" ? "If you know that the container is gone:" : "To release it now:"),
    command(f.command));
}

function leaksView() {
  const lead = el("p", { class: "summary" });
  const cards = el("div", { class: "cards" });
  return {
    element: el("section", { class: "view" }, heading("Leaks"), lead, cards),
    title: () => "Leaks",
    async update() {
      const list = await get("api/leaks");
      keyed(cards, list.items, (f) => f.uid || f.namespace + "/" + f.allocation, leakCard);
      const known = state?.summary.leaks !== undefined;
      const leaked = list.items.filter((f) => f.verdict.state === "LooksLeaked").length;
      lead.textContent = !known ? "What leaks is not known: pods and nodes cannot be read, or have not been read yet."
        : list.items.length === 0 ? "Nothing looks leaked, and nothing is held back."
        : `${number(leaked)} look leaked: the controller releases them when its grace is over. ${number(list.items.length - leaked)} are held back: they may be leaked, and stay until what is said below.` + (list.more ? ` ${number(list.more)} more are not listed.` : "");
    },
  };
}

// ---- search

function searchView(text) {
  const lead = el("p", { class: "summary" });
  const table = holdersTable();
  const places = el("ul", { class: "places" });
  return {
    element: el("section", { class: "view" }, heading("Search: ", text), lead, places, table.element),
    title: () => `Search: ${text}`,
    async update() {
      if (field.value === "") field.value = text;
      const r = await get("api/search", { q: text });
      const n = r.items.length + (r.more ?? 0);
      lead.textContent = r.address && n === 0 ? `Nobody holds ${r.address}${r.pools ? "." : ", and no pool has it."}`
        : n === 0 ? "Nobody holds an address for that pod, node or container." : `${number(n)} ${n === 1 ? "address is" : "addresses are"} held.`;
      keyed(places, r.pools ?? [], (p) => JSON.stringify(p), (p) => el("li", {}, "Show it in ", el("a", { href: addressLink(p, r.address) }, `pool ${p.name}`), el("span", { class: "faint" }, ` ${p.namespace} · ${p.kind}`)));
      table.show(r);
    },
  };
}

// ---- one pool

const rangeText = (p) => (p.from === p.to ? p.from : `${p.from} – ${p.to}`);
const partTitle = (p) => (p.node ? `Node ${p.node}` : p.unassigned ? "In no node's block" : rangeText(p));

function poolView(pool, rest) {
  let data, held = new Map(), shown, back, gone;
  const crumbs = el("nav", { class: "crumbs", "aria-label": "Place" });
  const facts = el("div", { class: "facts" });
  const said = el("ul", { class: "remarks" });
  const problem = el("div", { role: "alert" });
  const marks = el("ul", { class: "legend", "aria-label": "Legend" });
  const hint = el("p", { class: "faint hint" });
  const panel = el("aside", { id: "details", "aria-live": "polite", "aria-label": "Details" });
  const table = holdersTable();
  const title = heading(pool.name);
  const map = new AddressMap({
    moved: (item) => showDetails(item),
    opened(item) {
      if (item.to) {
        location.hash = rangeLink(pool, item);
        return;
      }
      showDetails(item);
      panel.querySelector("a, button")?.focus();
    },
    back: () => {
      if (location.hash === poolLink(pool)) location.hash = "#/pools"; // rest may not have followed yet
      else up();
    },
    describe,
  });
  const columns = el("div", { class: "columns" }, el("div", { class: "chart" }, map.element, marks, hint, table.element), panel);
  panel.addEventListener("keydown", (e) => {
    if (e.key === "Escape") map.canvas.focus();
  });

  const holder = (item) => held.get(item.number);

  function up() {
    const b = data?.block;
    back = data?.from;
    location.hash = b && (b.from !== data.from || b.to !== data.to) && !data.whole ? rangeLink(pool, b) : poolLink(pool);
  }

  function describe(item) {
    if (item.to) {
      const lines = [...new Set([partTitle(item), rangeText(item)]), `${number(item.held)} held of ${number(item.size)}`];
      if (item.leaked) lines.push(`! ${number(item.leaked)} look leaked`);
      if (item.doubtful) lines.push(`? ${number(item.doubtful)} held back`);
      return lines;
    }
    const f = holder(item);
    return [`${item.from} ${STATES[item.letter].name}`, ...(f ? [podName(f), f.node && `on ${f.node}`].filter(Boolean) : [])];
  }

  const meaning = {
    f: "Nobody holds it.", u: "It is in no node's block, so no node takes it.", g: "It is the gateway. Pods get it only if they ask for it.",
    x: "It is never given automatically: it is excluded, or no address of a host.",
  };

  function showDetails(item) {
    shown = item;
    const text = JSON.stringify([item.from, item.to, item.letter, item.held, item.size, item.leaked, item.doubtful, holder(item)]);
    if (panel.dataset.shown === text) return;
    panel.dataset.shown = text;
    if (item.to) {
      panel.replaceChildren(...[el("h3", {}, partTitle(item)), partTitle(item) !== rangeText(item) && el("p", { class: "address" }, rangeText(item)),
        el("p", {}, `${number(item.held)} held of ${number(item.size)}`),
        item.earlier && el("p", {}, "A block of an earlier specification of the pool."),
        item.leaked && el("p", {}, badge("leaked", "!", `${number(item.leaked)} look leaked`)),
        item.doubtful && el("p", {}, badge("doubtful", "?", `${number(item.doubtful)} held back`)),
        el("p", {}, el("a", { href: rangeLink(pool, item) }, "Show its addresses"))].filter(Boolean));
      return;
    }
    const f = holder(item);
    panel.replaceChildren(...[el("h3", { class: "address" }, item.from), el("p", {}, f ? stateOf(f) : badge("", "", STATES[item.letter].name)), ...(f ? details(f) : [el("p", {}, meaning[item.letter] ?? "")])].filter(Boolean));
  }

  function showFacts() {
    const p = data.pool;
    facts.replaceChildren(
      el("span", { class: "faint" }, `${p.namespace} · ${p.kind}`), el("span", { class: "address" }, p.subnet),
      el("span", { class: "use" }, meter(p), ` ${number(p.used)} of ${p.capacity === undefined ? "?" : number(p.capacity)} held`),
      p.blockCount ? el("span", {}, `${number(p.blockCount)} blocks`, p.fullBlocks ? el("span", { class: "warn" }, `, ${number(p.fullBlocks)} full`) : "") : "", readiness(p));
    said.replaceChildren(...remarks(p));
    const trail = [el("a", { href: "#/pools" }, "Pools"), data.whole ? pool.name : el("a", { href: poolLink(pool) }, pool.name)];
    if (data.block && !data.whole) {
      const isIt = data.block.from === data.from && data.block.to === data.to;
      trail.push(isIt ? partTitle(data.block) : el("a", { href: rangeLink(pool, data.block) }, partTitle(data.block)));
      if (!isIt) trail.push(rangeText(data));
    } else if (!data.whole) trail.push(rangeText(data));
    crumbs.replaceChildren(...trail.flatMap((t, i) => (i ? [el("span", { "aria-hidden": "true" }, " › "), t] : [t])));
    const common = data.parts && map.cut ? data.parts[0].from.slice(0, map.cut) : "";
    hint.textContent = [
      data.sparse && "Only ranges in which something is held are shown.",
      data.parts?.length === 0 && "Nothing is held here.",
      common && !data.parts.some((p) => p.node) && `Names are without ${common}`,
      data.parts?.some((p) => !p.cells && p.held) && !data.parts.some((p) => p.cells) && "Each bar shows how full a range is.",
    ].filter(Boolean).join(" ");
  }

  const query = () => {
    if (rest === "") return { ...pool };
    if (rest.startsWith("@")) return { ...pool, at: rest.slice(1) };
    const [from, to] = rest.split("-");
    return { ...pool, from, to };
  };

  return {
    element: el("section", { class: "view pool" }, crumbs, title, facts, said, problem, columns),
    title: () => pool.name,
    reuse(name, args) {
      if (name !== "pool" || args[0] !== pool.namespace || args[1] !== pool.kind || args[2] !== pool.name) return false;
      rest = args[3] ?? "";
      return true;
    },
    async update() {
      const asked = rest;
      const answer = await get("api/map", query());
      const list = answer.parts || !answer.from ? { items: [] } : await get("api/holders", { ...pool, from: answer.from, to: answer.to });
      if (asked !== rest) return; // the user has gone on
      data = answer;
      gone = undefined;
      problem.replaceChildren();
      this.element.classList.remove("gone");
      held = new Map(list.items.map((f) => [parse(f.address), f]));
      columns.classList.toggle("wide", Boolean(data.parts));
      map.element.hidden = !data.from || data.parts?.length === 0;
      map.canvas.setAttribute("aria-label", `${pool.name}, ${data.from ?? ""} to ${data.to ?? ""}: arrow keys move, Enter opens, Escape goes back`);
      const before = map.data;
      if (data.from) map.show(data);
      const other = !before || before.from !== data.from || before.to !== data.to;
      if (other) {
        if (rest.startsWith("@")) map.select(rest.slice(1));
        else if (back) map.select(back);
        back = undefined;
      }
      if (map.current >= 0 && map.items[map.current]) showDetails(map.items[map.current]);
      else panel.replaceChildren(el("p", { class: "faint" }, data.parts ? "Point at a part, or choose it with the arrow keys. Enter shows its addresses." : "Point at an address, or choose it with the arrow keys."));
      if (map.current < 0) delete panel.dataset.shown;
      marks.replaceChildren(...legend(map.counts()));
      showFacts();
      table.show(list);
    },
    failed(err) {
      if (!err.gone) {
        problem.replaceChildren(note({ kind: "bad", title: err.message }));
        return;
      }
      if (!state?.sources.every((s) => s.read || s.error)) return; // it may be there
      gone ??= Date.now();
      this.element.classList.add("gone");
      crumbs.replaceChildren(el("a", { href: "#/pools" }, "Pools"), el("span", { "aria-hidden": "true" }, " › "), pool.name);
      problem.replaceChildren(note({
        kind: "warn", title: data ? `The pool is gone: it was deleted at about ${clock(gone)}. What is shown is what it had then.` : err.message + ".",
        more: "Addresses that pods hold stay held: search finds them.",
      }));
    },
  };
}

// ---- keys

document.getElementById("search").addEventListener("submit", (e) => {
  e.preventDefault();
  const text = field.value.trim();
  if (text) location.hash = searchLink(text);
});

addEventListener("keydown", (e) => {
  if (e.key === "/" && !e.ctrlKey && !e.metaKey && !e.altKey && document.activeElement !== field) {
    e.preventDefault();
    field.focus();
    field.select();
  } else if (e.key === "Escape" && document.activeElement === field) {
    field.blur();
  }
});

addEventListener("hashchange", route);
setInterval(refreshAges, 10000);
showState();
route();
listen();
