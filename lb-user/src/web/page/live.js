// Asks the agent again and again, says when it is away, and goes on when it is back.

const EVERY = 2000;
const PATIENCE = 8000;
const tabs = [["device", "Device"], ...Object.entries(VIEWS).map(([name, view]) => [name, view.title]), ["history", "Last hour"]];

let tab = "";
let since = null;
let next = 0;
/** Rises when another question is wanted before the last one's answer. */
let turn = 0;

const token = {
  get: () => sessionStorage.getItem("token"),
  set: (value) => (value ? sessionStorage.setItem("token", value) : sessionStorage.removeItem("token")),
};

class Refused extends Error {}

async function ask(path) {
  const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  const answer = await fetch(`/api/v1/${path}`, { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) throw new Refused();
  const told = await answer.json();
  // The agent answers, but has nothing of this.
  return answer.ok ? { told, at: performance.now() } : { error: told.error ?? answer.statusText };
}

/** What the picture or the table is made of. */
function wanted() {
  if (tab === "device") return ["ports", "services", "backends", "announce"];
  return tab === "history" ? [] : [tab];
}

async function look() {
  const mine = ++turn;
  clearTimeout(next);
  const began = performance.now();
  let pause = EVERY;
  try {
    const names = wanted();
    const [who, past, ...lists] = await Promise.all([
      ask("about"),
      tab === "history" ? ask("history") : null,
      ...names.map((name) => ask(VIEWS[name].most ? `${name}?limit=${VIEWS[name].most}` : name)),
    ]);
    if (mine !== turn) return;
    here(who.told ?? {});
    const errors = lists.map(({ error }) => error).filter(Boolean);
    lists.forEach((list, index) => list.told && keep(names[index], list.told, list.at));
    say(byId("problem"), errors.join("; "));
    if (errors.length && tab === "device") trouble(errors.join("; "));
    if (past?.told) charts(past.told);
    show();
    // A slow device isn't asked the more often.
    pause = Math.min(20 * EVERY, Math.max(EVERY, 10 * (performance.now() - began)));
  } catch (error) {
    if (mine !== turn) return;
    if (error instanceof Refused) return refused();
    away();
  }
  next = setTimeout(look, document.hidden ? Math.max(pause, 5 * EVERY) : pause);
}

function show() {
  if (tab === "device") picture();
  else if (tab !== "history") arrange();
}

function here(who) {
  if (about && about.started !== who.started) {
    // Another process counts on in the kernel's tables, but answers of two don't make a rate.
    told.clear();
  }
  about = who;
  since = null;
  document.body.classList.remove("away");
  byId("ask").hidden = true;
  document.title = `${who.node || "stellwerk"} · stellwerk`;
  say(byId("node"), who.node ?? "");
  const days = (who.now - who.started) / 86400;
  const up = days >= 1 ? `${days.toFixed(1)} d` : days >= 1 / 24 ? `${(days * 24).toFixed(1)} h` : `${Math.round(days * 1440)} min`;
  say(byId("facts"), `version ${who.version} · revision ${who.revision} · agent up ${up} · a change takes ${(who.applied_mean_s * 1000).toFixed(1)} ms`);
  trouble(who.why ?? "");
}

function trouble(why) {
  document.body.classList.toggle("odd", Boolean(why));
  say(byId("state"), why ? `! ${why}` : "● live");
}

function away() {
  since ??= new Date();
  document.body.classList.add("away");
  document.body.classList.remove("odd");
  say(byId("state"), `○ The agent has not answered since ${since.toLocaleTimeString()}. Traffic goes on by the kernel's tables; this shows what was last told, and comes back by itself.`);
}

function refused() {
  const form = byId("ask");
  say(byId("wrong"), token.get() ? "That is not the token." : "");
  token.set(null);
  if (form.hidden) {
    form.hidden = false;
    byId("token").focus();
  }
  say(byId("state"), "○ waits for the token");
}

function open(name) {
  tab = tabs.some(([known]) => known === name) ? name : "device";
  for (const button of byId("tabs").children) {
    const chosen = button.dataset.tab === tab;
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    if (chosen) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  byId("device").hidden = tab !== "device";
  byId("history").hidden = tab !== "history";
  byId("list").hidden = tab === "device" || tab === "history";
  if (VIEWS[tab]) {
    byId("list").setAttribute("aria-label", VIEWS[tab].title);
    openTable(tab);
  }
  look();
}

byId("tabs").append(...tabs.map(([name, title]) => {
  const button = make("button", { type: "button", role: "tab", "data-tab": name }, title);
  button.addEventListener("click", () => {
    location.hash = name;
  });
  return button;
}));
byId("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const all = [...byId("tabs").children];
  const at = (all.indexOf(document.activeElement) + step + all.length) % all.length;
  all[at].focus();
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(byId("token").value.trim());
  byId("token").value = "";
  look();
});
addEventListener("hashchange", () => open(location.hash.slice(1)));
addEventListener("resize", () => tab === "device" ? picture() : (table.first = -1, paint()));
document.addEventListener("visibilitychange", () => !document.hidden && look());
open(location.hash.slice(1));
