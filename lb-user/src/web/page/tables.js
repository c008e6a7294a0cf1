// Tables that sort and search. Only the rows in sight are elements, so that thousands cost what forty do.

const joined = (list) => (list ?? []).join(", ");
const count = (field, title = field) => ({ title, value: (row) => row[field], show: (row) => short(row[field]), right: true });
const text = (field, title = field.replaceAll("_", " "), share = 1) => ({ title, value: (row) => (Array.isArray(row[field]) ? joined(row[field]) : row[field]), share });
const speed = (name, title, bytes, of) => ({
  title,
  value: (row) => of(rate(name, row)),
  show: (row) => (bytes ? bits : perSecond)(of(rate(name, row))),
  right: true,
});
const carried = (name) => [
  speed(name, "new", false, (now) => now.connections ?? null),
  speed(name, "packets", false, (now) => both(now.packets, now.reply_packets)),
  speed(name, "traffic", true, (now) => both(now.bytes, now.reply_bytes)),
  count("connections", "connections so far"),
];

function serviceState(row) {
  if (row.waiting) return `waits: ${row.waiting}`;
  if (row.failing) return `fails: ${joined(row.failing)}`;
  return row.backends === 0 ? "no backend" : "serves";
}

/** Each view: its listing, and columns; `share` is of the width. */
const VIEWS = {
  services: { title: "Services", columns: [
    text("name", "service", 2),
    { title: "addresses", value: (row) => joined(row.addresses), share: 2 },
    { title: "port", value: (row) => row.port, show: (row) => (row.port === null ? "–" : `${row.port}/${row.protocol}`), right: true },
    count("backends"), ...carried("services"),
    { title: "state", value: serviceState, share: 1.5 },
  ] },
  backends: { title: "Backends", columns: [
    text("service", "service", 2),
    { title: "address", value: (row) => endpoint(row.address, row.port), share: 1.6 },
    { title: "state", value: (row) => (row.left_s === null ? row.state : `${row.state}, ${row.left_s.toFixed(0)} s left`) },
    { title: "share", value: (row) => row.share, show: (row) => `${row.share.toFixed(1)} %`, right: true },
    ...carried("backends"),
    text("next_hop", "next hop", 1.4),
  ] },
  ports: { title: "Ports", columns: [
    text("name"), text("interface"), text("role"), text("state"), text("hook"), text("addresses", "addresses", 2.5),
    speed("ports", "in ▼", true, (now) => now.rx_bytes ?? null), speed("ports", "out ▲", true, (now) => now.tx_bytes ?? null),
    { title: "errors", value: (row) => both(row.rx_errors, row.tx_errors), show: (row) => short(both(row.rx_errors, row.tx_errors)), right: true },
    { title: "dropped", value: (row) => both(row.rx_dropped, row.tx_dropped), show: (row) => short(both(row.rx_dropped, row.tx_dropped)), right: true },
  ] },
  routes: { title: "Routes", columns: [
    text("destination", "destination", 1.5), text("next_hop", "next hop", 1.5), text("interface"), count("metric"), count("weight"),
    text("type"), text("origin"), text("state"), text("reason", "reason", 2),
  ] },
  nat: { title: "NAT", columns: [text("what"), text("name", "name", 1.5), text("state"), count("count"), count("capacity"), text("detail", "meaning", 3)] },
  "nat/top": { title: "NAT hosts", columns: [text("host", "host", 2), count("ports"), count("quota"), count("denied")] },
  drops: { title: "Drops", columns: [
    text("kind"), text("reason", "reason", 1.5), count("count", "packets"),
    speed("drops", "now", false, (now) => now.count ?? null), text("text", "meaning", 4),
  ] },
  flows: { title: "Connections", most: 1000, columns: [
    text("protocol"), text("client", "client", 1.6), text("vip", "asked", 1.6), text("backend", "answers", 1.6), text("snat", "as", 1.6),
    text("service", "service", 1.5), text("state"),
    { title: "idle", value: (row) => row.idle_s, show: (row) => `${row.idle_s.toFixed(0)} s`, right: true },
  ] },
  status: { title: "Status", columns: [text("what"), text("name", "name", 2), text("state"), count("used"), count("capacity"), text("detail", "detail", 3)] },
  addresses: { title: "Addresses", columns: [text("what"), text("name", "name", 1.5), text("pool"), text("services", "services", 2), count("used"), count("free"), text("detail", "detail", 3)] },
  announce: { title: "Nodes", columns: [text("what"), text("name", "name", 1.5), text("state"), text("interface"), text("owner"), text("services", "services", 2), text("detail", "detail", 2)] },
  pods: { title: "Pods", columns: [text("pod", "pod", 2), text("addresses", "addresses", 2), text("interface"), text("host_interface"), text("host_ports", "host ports", 2), text("container", "container", 2)] },
  dns: { title: "Names", columns: [text("kind"), text("name", "name", 1.5), count("count"), speed("dns", "now", false, (now) => now.count ?? null), text("text", "meaning", 4)] },
};

/** Taller than any row; rows are exactly as high. */
const ROW = parseFloat(getComputedStyle(document.documentElement).fontSize) * 2;
const EXTRA = 8;

const table = { view: "", sorts: {}, all: [], pool: [], first: -1, wanted: false };
const scroller = byId("scroller");
const body = scroller.querySelector("tbody");
const spaces = [make("tr", { class: "space", "aria-hidden": "true" }, make("td")), make("tr", { class: "space", "aria-hidden": "true" }, make("td"))];

/** Columns and head of another view. */
function openTable(view) {
  table.view = view;
  const columns = VIEWS[view].columns;
  const shares = columns.reduce((sum, column) => sum + (column.share ?? 1), 0);
  const group = scroller.querySelector("colgroup");
  group.replaceChildren(...columns.map((column) => {
    const element = make("col");
    element.style.width = `${(100 * (column.share ?? 1)) / shares}%`;
    return element;
  }));
  const sort = (table.sorts[view] ??= { column: -1, down: false });
  const heads = columns.map((column, index) => {
    const mark = make("span", { "aria-hidden": "true" });
    const button = make("button", { type: "button" }, column.title, mark);
    const head = make("th", { scope: "col", class: column.right ? "right" : "" }, button);
    const show = () => {
      head.setAttribute("aria-sort", sort.column !== index ? "none" : sort.down ? "descending" : "ascending");
      say(mark, sort.column !== index ? "" : sort.down ? " ▼" : " ▲");
    };
    button.addEventListener("click", () => {
      // Numbers are wanted from the largest on.
      if (sort.column === index) sort.down = !sort.down;
      else Object.assign(sort, { column: index, down: Boolean(column.right) });
      for (const again of heads) again.show();
      arrange();
    });
    show();
    return { head, show };
  });
  scroller.querySelector("thead tr").replaceChildren(...heads.map(({ head }) => head));
  for (const space of spaces) space.firstChild.colSpan = columns.length;
  table.pool = [];
  body.replaceChildren(...spaces);
  scroller.scrollTop = 0;
  arrange();
}

/** Chooses and orders the rows anew. */
function arrange() {
  const { view, sorts } = table;
  if (!VIEWS[view]) return;
  const columns = VIEWS[view].columns;
  const words = byId("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const all = rows(view);
  const cell = (column, row) => (column.show ?? column.value)(row) ?? "–";
  let chosen = all;
  if (words.length) {
    chosen = all.filter((row) => {
      const line = columns.map((column) => cell(column, row)).join(" ").toLowerCase();
      return words.every((word) => line.includes(word));
    });
  }
  const { column, down } = sorts[view];
  if (column >= 0) {
    const of = columns[column].value;
    const keyed = chosen.map((row) => [of(row), row]);
    const order = (a, b) => {
      if (a === b) return 0;
      // What isn't known is last, whichever way.
      if (a === null || a === undefined || a === "") return down ? -1 : 1;
      if (b === null || b === undefined || b === "") return down ? 1 : -1;
      return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    };
    keyed.sort(([a], [b]) => (down ? order(b, a) : order(a, b)));
    chosen = keyed.map(([, row]) => row);
  }
  table.all = chosen;
  const most = VIEWS[view].most;
  const cut = most && all.length >= most ? `, the first ${most} that were read` : "";
  say(byId("count"), told.has(view) ? `${chosen.length} of ${all.length}${cut}` : "");
  table.first = -1;
  paint();
}

/** Makes the rows in sight say what they shall. */
function paint() {
  table.wanted = false;
  const columns = VIEWS[table.view]?.columns;
  if (!columns || byId("list").hidden) return;
  const sight = Math.ceil(scroller.clientHeight / ROW) + 2 * EXTRA;
  const first = Math.max(0, Math.min(Math.floor(scroller.scrollTop / ROW) - EXTRA, table.all.length - sight));
  if (first === table.first) return;
  table.first = first;
  const here = table.all.slice(first, first + sight);
  while (table.pool.length < here.length) {
    const cells = columns.map((column) => make("td", { class: column.right ? "right" : "" }));
    const row = make("tr", {}, ...cells);
    spaces[1].before(row);
    table.pool.push({ row, cells });
  }
  while (table.pool.length > here.length) table.pool.pop().row.remove();
  here.forEach((row, index) => {
    const cells = table.pool[index].cells;
    columns.forEach((column, at) => {
      const words = String((column.show ?? column.value)(row) ?? "–") || "–";
      if (cells[at].textContent !== words) {
        cells[at].textContent = words;
        cells[at].title = words;
      }
    });
  });
  spaces[0].firstChild.style.height = `${first * ROW}px`;
  spaces[1].firstChild.style.height = `${(table.all.length - first - here.length) * ROW}px`;
}

scroller.addEventListener("scroll", () => {
  if (!table.wanted) {
    table.wanted = true;
    requestAnimationFrame(paint);
  }
}, { passive: true });
byId("search").addEventListener("input", () => {
  scroller.scrollTop = 0;
  arrange();
});
