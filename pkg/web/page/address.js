// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// parse reads an address, of either family, as a number. The server checks addresses.
export function parse(text) {
  if (!text.includes(":")) {
    return text.split(".").reduce((sum, part) => sum * 256n + BigInt(part), 0n);
  }
  const [head, tail] = text.split("::");
  const groups = (t) => (t ? t.split(":") : []);
  const first = groups(head), last = groups(tail);
  const zeros = tail === undefined ? 0 : 8 - first.length - last.length;
  return [...first, ...Array(zeros).fill("0"), ...last].reduce((sum, g) => sum * 65536n + BigInt("0x" + g), 0n);
}

// format writes a number as an address, in its canonical form (RFC 5952).
export function format(n, v6) {
  if (!v6) return [24n, 16n, 8n, 0n].map((shift) => (n >> shift) & 255n).join(".");
  const groups = [];
  for (let shift = 112n; shift >= 0n; shift -= 16n) groups.push(((n >> shift) & 65535n).toString(16));
  let best = [0, 1]; // the first of the longest runs of at least two zeros
  for (let i = 0; i < 8; i++) {
    let j = i;
    while (j < 8 && groups[j] === "0") j++;
    if (j - i > best[1]) best = [i, j - i];
  }
  if (best[1] < 2) return groups.join(":");
  return groups.slice(0, best[0]).join(":") + "::" + groups.slice(best[0] + best[1]).join(":");
}

// shared returns how addresses begin that all begin in the same way, up to a "." or ":".
export function shared(texts) {
  if (texts.length < 2) return "";
  let n = 0;
  while (n < texts[0].length && texts.every((t) => t[n] === texts[0][n])) n++;
  const cut = Math.max(texts[0].lastIndexOf(".", n - 1), texts[0].lastIndexOf(":", n - 1));
  return n === 0 ? "" : texts[0].slice(0, cut + 1);
}
