"use strict";
// Tables. A click on a head sorts upwards, another downwards, a third as the table came.
const FACTOR = {k: 1e3, m: 1e6, g: 1e9, t: 1e12};
const SECONDS = {ms: 1e-3, s: 1, min: 60, h: 3600};
const NUMBER =
  /^(×)?\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(%|[kKMGT]?B|[kKMT]|ms|s|min|h)?(?=$|[\s±(*!~])\s*(?:[±(*!~].*)?$/;

/** What a cell's text is worth as a number: its unit counts, its uncertainty and marks don't. */
function number(text, kind) {
  const plain = text.trim().replace(/−/g, "-").replace(/(\d),(?=\d{3}(?!\d))/g, "$1");
  const clock = /^(?:(\d+):)?(\d+):(\d\d)$/.exec(plain);
  if (clock) return ((+clock[1] || 0) * 60 + +clock[2]) * 60 + +clock[3];
  if (plain === "same" || plain.startsWith("under ")) return 0;
  if (/^[+-]?inf(inity)?$/.test(plain)) return plain[0] === "-" ? -Infinity : Infinity;
  const found = NUMBER.exec(plain);
  if (!found) return NaN;
  const value = +found[2], unit = found[3] || "";
  if (found[1]) return kind.percent ? 100 * (value - 1) : value;  // "×13" among changes in per cent
  if (unit in SECONDS) return value * SECONDS[unit];
  if (unit === "B") return kind.bytes ? value : value * 1e9;  // a byte, or a billion
  return value * (FACTOR[unit[0]?.toLowerCase()] || 1);
}

/** The keys of a column: numbers if most of its cells are, with NaN for the others; else texts. */
function keys(cells) {
  const texts = cells.map(cell => cell.textContent.trim());
  const kind = {
    percent: texts.some(text => text.endsWith("%")),
    bytes: texts.some(text => /\d\s*[kMGT]B\b/.test(text)),
  };
  const numbers = cells.map((cell, i) =>
    cell.dataset.v === undefined ? number(texts[i], kind) : parseFloat(cell.dataset.v));
  const known = numbers.filter(value => !isNaN(value)).length;
  return known * 2 > texts.filter(text => text !== "").length ? numbers : texts;
}

function sort(head) {
  const body = head.closest("table").tBodies[0], rows = [...body.rows];
  rows.forEach((row, i) => row.dataset.first ??= i);
  const next = {none: "ascending", ascending: "descending", descending: "none"};
  const way = next[head.getAttribute("aria-sort")], sign = way === "descending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", way);
  const found = keys(rows.map(row => row.cells[head.cellIndex]));
  const lacks = key => key === "" || Number.isNaN(key);
  const compare = (x, y) => {
    if (lacks(x) || lacks(y)) return lacks(x) - lacks(y);  // what isn't known stays last
    if (x === y) return 0;
    const order = typeof x === "number" ? (x < y ? -1 : 1)
      : x.localeCompare(y, undefined, {numeric: true});
    return sign * order;
  };
  const order = rows.map((row, i) => [row, found[i], +row.dataset.first]);
  order.sort((a, b) => (way === "none" ? 0 : compare(a[1], b[1])) || a[2] - b[2]);
  body.append(...order.map(one => one[0]));
}
for (const button of document.querySelectorAll("th[aria-sort] button"))
  button.addEventListener("click", () => sort(button.parentElement));

// Plots. Every mark says itself to the pointer, a finger or the arrow keys; a click on a name of
// the legend hides its series.
const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);
let lit = null;

function show(mark) {
  lit?.classList.remove("at");
  lit = mark;
  tip.hidden = !mark;
  if (!mark) return;
  mark.classList.add("at");
  tip.textContent = mark.dataset.tip;
  const box = mark.getBoundingClientRect();
  const left = (box.left + box.right - tip.offsetWidth) / 2;
  const top = box.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${top < 4 ? box.bottom + 8 : top}px`;
}

for (const figure of document.querySelectorAll("figure.plot")) {
  const svg = figure.querySelector(":scope > svg");
  const said = [...svg.querySelectorAll("title")].map(title => {
    const mark = title.parentElement;
    mark.dataset.tip = title.textContent;
    title.remove();  // or the browser would say it a second time
    return mark;
  });
  const shown = () => [...svg.querySelectorAll(".series:not(.off)")]
    .map(group => [...group.querySelectorAll("[data-tip]")]).filter(marks => marks.length);
  for (const button of figure.querySelectorAll(".legend button"))
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", !on);
      svg.querySelector(`.series[data-s="${button.dataset.s}"]`).classList.toggle("off", on);
      show(null);
    });

  const nearest = event => {
    if (event.target.dataset?.tip) return event.target;
    let best = null, least = 24;  // pixels
    for (const mark of said) {
      if (mark.closest(".off")) continue;
      const box = mark.getBoundingClientRect();
      const away = Math.hypot((box.left + box.right) / 2 - event.clientX,
                              (box.top + box.bottom) / 2 - event.clientY);
      if (away < least) [best, least] = [mark, away];
    }
    return best;
  };
  svg.addEventListener("pointermove", event => show(nearest(event)));
  svg.addEventListener("pointerdown", event => show(nearest(event)));
  svg.addEventListener("pointerleave", event => event.pointerType === "touch" || show(null));

  svg.tabIndex = 0;
  svg.addEventListener("blur", () => show(null));
  svg.addEventListener("keydown", event => {
    const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]};
    if (event.key === "Escape") show(null);
    if (!(event.key in step)) return;
    event.preventDefault();
    const groups = shown();
    if (!groups.length) return;
    const at = groups.findIndex(marks => marks.includes(lit));
    if (at < 0) return show(groups[0][0]);
    const [down, right] = step[event.key];
    const group = groups[Math.max(0, Math.min(at + down, groups.length - 1))];
    show(group[Math.max(0, Math.min(groups[at].indexOf(lit) + right, group.length - 1))]);
  });
}

// Paper can't be unfolded.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
