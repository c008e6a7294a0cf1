// The device as it is: ports, services, switches, backends and other nodes, with what passes between them.

const SERVICES = 12;
const BACKENDS = 6;
const HEIGHT = 44;
const GAP = 10;

/** What to do with new numbers while nothing else has changed. */
let refresh = [];
let drawn = "";

const traffic = (name, row) => {
  const now = rate(name, row);
  return both(now.bytes, now.reply_bytes);
};

function width(bytes) {
  return bytes > 0 ? Math.min(9, 1.5 + Math.log10(bytes + 1)).toFixed(1) : 1;
}

function fit(text, pixels) {
  const most = Math.max(4, Math.floor(pixels / 7));
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

/** The services that are drawn, those with most traffic first, each with its backends. */
function chosen() {
  const all = rows("services").filter((row) => row.id !== null);
  const kept = new Set(drawnServices);
  // One that is drawn stays, unless another has clearly more.
  const score = (row) => (traffic("services", row) ?? 0) * (kept.has(row.id) ? 1.5 : 1) + (kept.has(row.id) ? 1 : 0);
  const first = all.map((row) => [score(row), row]).sort((a, b) => b[0] - a[0] || (a[1].name ?? "").localeCompare(b[1].name ?? ""));
  const services = first.slice(0, SERVICES).map(([, row]) => row).sort((a, b) => (a.name ?? "").localeCompare(b.name ?? ""));
  drawnServices = services.map((row) => row.id);
  const names = new Set(services.map((row) => row.name));
  const backends = rows("backends").filter((row) => names.has(row.service));
  return { services, backends, more: all.length - services.length };
}
let drawnServices = [];

function picture() {
  const place = byId("picture");
  const { services, backends, more } = chosen();
  const total = place.clientWidth || 960;
  const key = JSON.stringify([
    total, about?.node, more,
    rows("ports").map((row) => [row.name, row.state, row.hook, row.role, row.addresses]),
    services.map((row) => [row.id, row.name, row.addresses, row.backends, row.failing, row.waiting]),
    backends.map((row) => [row.id, row.state, row.remote]),
    rows("announce").map((row) => [row.name, row.state]),
  ]);
  if (key !== drawn) {
    drawn = key;
    refresh = [];
    const svg = total < 720 ? stacked(services, backends, more, total) : columns(services, backends, more, total);
    place.replaceChildren(svg);
  }
  for (const again of refresh) again();
}

/** A box with a name, a line of words, and a line of numbers that live. */
function box(svg, x, y, w, { title, words, numbers, odd, hint }) {
  svg.append(draw("rect", { x, y, width: w, height: HEIGHT, rx: 4, class: odd ? "odd" : "" }));
  const name = draw("text", { x: x + 8, y: y + 17, class: "strong" }, fit(title, w - 12));
  name.append(draw("title", {}, hint ?? title));
  svg.append(name);
  const second = draw("text", { x: x + 8, y: y + 35, class: odd ? "odd" : "soft" });
  svg.append(second);
  refresh.push(() => say(second, fit([words(), numbers()].filter(Boolean).join(" · "), (w - 12) * 1.06)));
}

function wire(svg, from, to, bytes, odd) {
  const bend = (to[0] - from[0]) / 2;
  const path = draw("path", {
    d: `M${from[0]},${from[1]} C${from[0] + bend},${from[1]} ${to[0] - bend},${to[1]} ${to[0]},${to[1]}`,
    class: odd ? "odd" : "",
  });
  svg.append(path);
  refresh.push(() => path.setAttribute("stroke-width", width(bytes())));
}

const now = (name, id) => {
  const row = told.get(name)?.counts.get(String(id));
  return row ? { row, rate: rate(name, row) } : { row: {}, rate: {} };
};

function portBox(svg, port, x, y, w) {
  const addresses = port.addresses.join(", ");
  const role = { uplink: "uplink", compute: "compute: external switch", port: "port", switch: "internal switch", inside: "inside" }[port.role];
  box(svg, x, y, w, {
    title: `${port.name}${port.name === port.interface ? "" : ` (${port.interface})`}`,
    hint: `${port.name}: ${port.interface}, ${role}, ${port.state}, ${port.hook ?? "no hook"}; ${addresses}`,
    words: () => (port.state === "up" ? role : `${port.state}! ${role}`),
    numbers: () => (port.role === "switch" && w < 300 ? portWords(port)() : w < 230 ? "" : port.hook ?? ""),
    odd: port.state !== "up",
  });
}

const portBytes = (port) => () => both(now("ports", port.interface).rate.rx_bytes, now("ports", port.interface).rate.tx_bytes);
const portWords = (port) => () => {
  const rates = now("ports", port.interface).rate;
  return `▼ ${bits(rates.rx_bytes)}  ▲ ${bits(rates.tx_bytes)}`;
};

function serviceBox(svg, service, x, y, w) {
  const odd = Boolean(service.waiting || service.failing || service.backends === 0);
  const trouble = service.waiting ? "waits for an address" : service.failing ? `${service.failing.length} fail` : "no backend";
  box(svg, x, y, w, {
    title: service.name ?? `id ${service.id}`,
    hint: `${service.name} ${service.protocol} at ${service.addresses.join(", ")} port ${service.port}`,
    words: () => (odd ? trouble : ""),
    numbers: () => {
      const rates = now("services", service.id).rate;
      return `${perSecond(rates.connections)} new · ${bits(both(rates.bytes, rates.reply_bytes))}`;
    },
    odd,
  });
}

function backendBox(svg, backend, x, y, w) {
  const odd = backend.state !== "active";
  box(svg, x, y, w, {
    title: endpoint(backend.address, backend.port),
    hint: `${backend.service}: ${endpoint(backend.address, backend.port)}, ${backend.state}, by ${backend.next_hop}`,
    words: () => (odd ? backend.state : `${now("backends", backend.id).row.share?.toFixed(0) ?? "–"} %`),
    numbers: () => {
      const rates = now("backends", backend.id).rate;
      return bits(both(rates.bytes, rates.reply_bytes));
    },
    odd,
  });
}

const backendBytes = (backend) => () => {
  const rates = now("backends", backend.id).rate;
  return both(rates.bytes, rates.reply_bytes);
};

/** Backends of one address and port are one thing, whichever services lead there. */
function merged(backends) {
  const all = new Map();
  for (const backend of backends) {
    const title = endpoint(backend.address, backend.port);
    const one = all.get(title) ?? { title, remote: backend.remote, of: [] };
    one.of.push(backend);
    all.set(title, one);
  }
  return [...all.values()];
}

function placeBox(svg, { title, of }, x, y, w) {
  if (of.length === 1) return backendBox(svg, of[0], x, y, w);
  const drains = of.filter((backend) => backend.state !== "active").length;
  box(svg, x, y, w, {
    title,
    hint: `${title}, for ${of.map((backend) => backend.service).join(", ")}`,
    words: () => (drains ? `drains for ${drains} of ${of.length} services` : `for ${of.length} services`),
    numbers: () => bits(of.reduce((sum, backend) => both(backendBytes(backend)(), sum), 0)),
    odd: drains > 0,
  });
}

/** Backends by where they are, at most so many of a service. */
function places(services, backends) {
  const shown = [];
  const left = new Map();
  for (const service of services) {
    const mine = backends.filter((row) => row.service === service.name);
    shown.push(...mine.slice(0, BACKENDS));
    if (mine.length > BACKENDS) left.set(service.id, mine.length - BACKENDS);
  }
  return { shown, here: merged(shown.filter((row) => !row.remote)), elsewhere: merged(shown.filter((row) => row.remote)), left };
}

function canvas(total, height) {
  const svg = draw("svg", { viewBox: `0 0 ${total} ${height}`, height, role: "img" });
  svg.append(draw("title", {}, `Node ${about?.node ?? ""}: ports, services and backends`));
  return svg;
}

const nodes = () => rows("announce").filter((row) => row.what === "node");
const nodeWords = (node) => `${node.state === "alive" ? "●" : "○"} ${node.name} ${node.state}`;

function columns(services, backends, more, total) {
  const column = Math.min(270, Math.floor((total - 190) / 3.1));
  const [left, right] = [1, total - column - 9];
  const middle = Math.round((left + column + right - column) / 2);
  const { here, elsewhere, left: hidden } = places(services, backends);
  const outside = rows("ports").filter((row) => !["switch", "inside"].includes(row.role));
  const switches = rows("ports").filter((row) => row.role === "switch");
  const inside = rows("ports").filter((row) => row.role === "inside");
  const step = HEIGHT + GAP;
  const lines = Math.max(outside.length * 1.6 + nodes().length * 0.6 + 1, services.length, 1);
  const top = (switches.length + here.length) * step + 44;
  const bottom = elsewhere.length * step + nodes().length * 18 + 40;
  const height = Math.max(lines * step + 60, top + bottom + 30);
  const svg = canvas(total, Math.ceil(height));
  const wires = draw("g");

  // The device, with its services.
  svg.append(draw("rect", { x: middle - 14, y: 4, width: column + 28, height: height - 8, rx: 8, class: "device" }));
  svg.append(draw("text", { x: middle, y: 26, class: "strong" }, about?.node ?? "this node"));
  svg.append(draw("text", { x: middle, y: height - 16, class: "soft" }, more > 0 ? `and ${more} services more` : `${services.length} services`));
  svg.append(wires);
  const at = new Map();
  services.forEach((service, i) => {
    const y = 40 + i * step;
    at.set(service.name, y + HEIGHT / 2);
    serviceBox(svg, service, middle, y, column);
    if (hidden.has(service.id)) svg.append(draw("text", { x: middle + column - 4, y: y + 17, "text-anchor": "end", class: "soft" }, `+${hidden.get(service.id)}`));
  });

  // Outside.
  let y = 40;
  for (const port of outside) {
    portBox(svg, port, left, y, column);
    wire(wires, [left + column, y + HEIGHT / 2], [middle - 14, y + HEIGHT / 2], portBytes(port), port.state !== "up");
    const words = draw("text", { x: left + 8, y: y + HEIGHT + 16, class: "soft" });
    svg.append(words);
    refresh.push(() => say(words, portWords(port)()));
    y += step * 1.6;
    if (port.role === "compute") {
      for (const node of nodes()) {
        svg.append(draw("text", { x: left + 20, y: y - 8, class: node.state === "gone" ? "odd" : "" }, `└ ${nodeWords(node)}`));
        y += 22;
      }
    }
  }

  // Inside, and on other nodes.
  const x = right + 2;
  svg.append(draw("rect", { x: right - 8, y: 4, width: column + 16, height: top, rx: 8, class: "group" }));
  svg.append(draw("text", { x, y: 24, class: "soft" }, `inside${inside.length ? `: ${inside.length} interfaces` : ""}`));
  y = 34;
  for (const port of switches) {
    portBox(svg, port, x, y, column - 4);
    wire(wires, [middle + column + 14, y + HEIGHT / 2], [x, y + HEIGHT / 2], portBytes(port), port.state !== "up");
    y += step;
  }
  const hang = (place) => {
    placeBox(svg, place, x, y, column - 4);
    for (const backend of place.of) {
      wire(wires, [middle + column, at.get(backend.service)], [x, y + HEIGHT / 2], backendBytes(backend), backend.state !== "active");
    }
    y += step;
  };
  here.forEach(hang);
  if (elsewhere.length || nodes().length) {
    const from = top + 14;
    svg.append(draw("rect", { x: right - 8, y: from, width: column + 16, height: bottom, rx: 8, class: "group" }));
    svg.append(draw("text", { x, y: from + 20, class: "soft" }, "on other nodes"));
    y = from + 30;
    for (const node of nodes()) {
      svg.append(draw("text", { x, y: y + 12, class: node.state === "gone" ? "odd" : "" }, nodeWords(node)));
      y += 18;
    }
    y += 4;
    elsewhere.forEach(hang);
  }
  return svg;
}

/** The same from top to bottom, for narrow windows: backends hang below their service. */
function stacked(services, backends, more, total) {
  const { shown, left } = places(services, backends);
  const ports = rows("ports").filter((row) => row.role !== "inside");
  const step = HEIGHT + GAP;
  const lines = ports.length * 1.45 + services.length + shown.length;
  const height = Math.ceil(lines * step + left.size * 18 + nodes().length * 22 + 70);
  const svg = canvas(total, height);
  let y = 4;
  for (const port of ports) {
    portBox(svg, port, 1, y, total - 2);
    const words = draw("text", { x: 12, y: y + HEIGHT + 16, class: "soft" });
    svg.append(words);
    refresh.push(() => say(words, portWords(port)()));
    y += step * 1.45;
  }
  for (const node of nodes()) {
    svg.append(draw("text", { x: 12, y: y + 12, class: node.state === "gone" ? "odd" : "" }, nodeWords(node)));
    y += 22;
  }
  svg.append(draw("text", { x: 2, y: y + 16, class: "strong" }, `${about?.node ?? ""}: ${more > 0 ? `${services.length} of ${services.length + more}` : services.length} services`));
  y += 28;
  for (const service of services) {
    serviceBox(svg, service, 1, y, total - 2);
    const from = y + HEIGHT;
    y += step;
    for (const backend of shown.filter((row) => row.service === service.name)) {
      backendBox(svg, backend, 34, y, total - 36);
      const path = draw("path", { d: `M16,${from} V${y + HEIGHT / 2} H34`, class: backend.state === "active" ? "" : "odd" });
      svg.append(path);
      refresh.push(() => path.setAttribute("stroke-width", width(backendBytes(backend)())));
      y += step;
    }
    if (left.has(service.id)) {
      svg.append(draw("text", { x: 40, y: y + 8, class: "soft" }, `and ${left.get(service.id)} backends more`));
      y += 18;
    }
  }
  return svg;
}
