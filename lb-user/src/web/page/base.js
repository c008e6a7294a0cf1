// What the rest is made with: elements, numbers for people, and what was told last.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

/** The last answer of each listing, the one before, and rates by row. */
const told = new Map();
/** The agent, as it says of itself. */
let about = null;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const PREFIXES = ["", "k", "M", "G", "T", "P"];

/** Three digits and a prefix: 1.23 M */
function short(number, unit = "") {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  let step = 0;
  while (Math.abs(number) >= 999.5 && step < PREFIXES.length - 1) {
    number /= 1000;
    step += 1;
  }
  const digits = step === 0 && Number.isInteger(number) ? 0 : Math.abs(number) >= 99.5 ? 0 : Math.abs(number) >= 9.95 ? 1 : 2;
  return `${number.toFixed(digits)} ${PREFIXES[step]}${unit}`.trim();
}

const bits = (bytes) => short(bytes === null || bytes === undefined ? null : bytes * 8, "bit/s");
const perSecond = (rate) => short(rate, "/s");

/** What makes a row the same one in the next answer. */
const KEYS = {
  services: (row) => String(row.id ?? row.name),
  backends: (row) => String(row.id),
  ports: (row) => row.interface,
  drops: (row) => row.kind + row.reason,
  dns: (row) => row.kind + row.name,
};

/** Keeps an answer; counts become rates by the one before. */
function keep(name, rows, at) {
  const key = KEYS[name];
  const last = told.get(name);
  const rates = new Map();
  const counts = new Map();
  if (key) {
    for (const row of rows) counts.set(key(row), row);
    const seconds = last ? (at - last.at) / 1000 : 0;
    if (seconds > 0.2) {
      for (const [id, row] of counts) {
        const before = last.counts.get(id);
        if (before) rates.set(id, rateOf(before, row, seconds));
      }
    } else if (last) {
      return;
    }
  }
  told.set(name, { rows, at, counts, rates });
}

function rateOf(before, row, seconds) {
  const rate = {};
  for (const [field, value] of Object.entries(row)) {
    const gone = before[field];
    // A count that falls began anew.
    if (typeof value === "number" && typeof gone === "number") rate[field] = value >= gone ? (value - gone) / seconds : null;
  }
  return rate;
}

const rows = (name) => told.get(name)?.rows ?? [];
const rate = (name, row) => told.get(name)?.rates.get(KEYS[name](row)) ?? {};
const both = (a, b) => (a === undefined || a === null ? null : a + (b ?? 0));
const endpoint = (address, port) => (address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`);
