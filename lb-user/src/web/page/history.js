// The last hour, as lines. The agent keeps a sample every ten seconds, also while nobody looks.

const LEVELS = new Set(["flows", "nat_ports"]);
const CHARTS = [
  { title: "Traffic of services", series: ["service_bytes"], show: bits },
  { title: "New connections", series: ["connections"], show: perSecond },
  { title: "Connections in the tables", series: ["flows"], show: (value) => short(value) },
  { title: "Packets of services", series: ["service_packets"], show: perSecond },
  { title: "Packets forwarded", series: ["forwarded"], show: perSecond },
  { title: "Packets dropped", series: ["dropped"], show: perSecond },
  { title: "Ports outside in use", series: ["nat_ports"], show: (value) => short(value) },
];

function charts(history) {
  const series = new Map(history.series.map(({ name, values }) => [name, values]));
  const ports = history.series.map(({ name }) => name).filter((name) => name.startsWith("rx_bytes ")).map((name) => name.slice(9));
  const all = CHARTS.concat(ports.map((port) => ({ title: `${port}: in (line), out (dashed)`, series: [`rx_bytes ${port}`, `tx_bytes ${port}`], show: bits })));
  const figures = all.map((chart) => figure(chart, history, series)).filter(Boolean);
  byId("charts").replaceChildren(...figures);
}

/** A count's rates, or a level as it is. */
function curve(name, history, series) {
  const values = series.get(name) ?? [];
  if (LEVELS.has(name)) return values;
  return values.map((value, i) => {
    const before = values[i - 1];
    const seconds = history.at[i] - history.at[i - 1];
    return i === 0 || value === null || before === null || value < before || !(seconds > 0) ? null : (value - before) / seconds;
  });
}

function figure({ title, series: names, show }, history, series) {
  const curves = names.map((name) => curve(name, history, series));
  const known = curves.flat().filter((value) => value !== null && value !== undefined);
  const last = curves.map((values) => show(values.at(-1))).join(" / ");
  const caption = make("figcaption", {}, title, make("span", {}, last));
  if (known.length === 0) return make("figure", {}, caption, make("p", { class: "legend" }, "Nothing yet: a sample comes every 10 s."));
  const [w, h, foot] = [400, 110, 18];
  const most = Math.max(...known, 1e-9);
  const svg = draw("svg", { viewBox: `0 0 ${w} ${h + foot}`, role: "img", "aria-label": `${title}: now ${last}, at most ${show(most)}` });
  const end = history.at.at(-1);
  const x = (at) => w - ((end - at) / 3600) * w;
  const y = (value) => h - (value / most) * (h - 18);
  svg.append(draw("line", { x1: 0, x2: w, y1: h, y2: h }));
  svg.append(draw("text", { x: 2, y: 12, class: "soft" }, `at most ${show(most)}`));
  svg.append(draw("text", { x: 2, y: h + 14, class: "soft" }, "an hour ago"));
  svg.append(draw("text", { x: w - 2, y: h + 14, "text-anchor": "end", class: "soft" }, "now"));
  curves.forEach((values, index) => {
    let pen = "";
    let d = "";
    values.forEach((value, i) => {
      const gone = value === null || value === undefined;
      if (!gone) d += `${pen === "" ? "M" : "L"}${x(history.at[i]).toFixed(1)},${y(value).toFixed(1)}`;
      pen = gone ? "" : "L";
    });
    if (d) svg.append(draw("path", { d, class: index ? "second" : "", "stroke-width": 1.8 }));
  });
  return make("figure", {}, caption, svg);
}
