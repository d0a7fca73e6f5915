// The page at work: theme, keys, links into the browser, and what a run that still trains sends.

const EVERY = 2000; // ms between two questions to the server

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  try { localStorage.setItem("rl-reasoner-theme", dark ? "dark" : "light"); } catch { /* not kept then */ }
}

function startTheme() {
  try {
    const kept = localStorage.getItem("rl-reasoner-theme");
    if (kept) document.documentElement.dataset.theme = kept;
  } catch { /* the system's then */ }
}

function turnTheme() {
  const { theme: now } = document.documentElement.dataset;
  theme(now ? now === "light" : !matchMedia("(prefers-color-scheme: dark)").matches);
}

function startKeys(browser) {
  const help = document.getElementById("help");
  const actions = {
    t: turnTheme,
    "?": () => (help.open ? help.close() : help.showModal()),
    ...(browser && {
      j: () => browser.step(1),
      k: () => browser.step(-1),
      n: () => browser.leap(1),
      p: () => browser.leap(-1),
      d: () => browser.differ(),
      "/": () => { browser.form.text.focus(); browser.form.scrollIntoView({ block: "start" }); },
      Escape: () => delete document.body.dataset.detail,
    }),
  };
  document.getElementById("theme").addEventListener("click", turnTheme);
  document.getElementById("keys").addEventListener("click", actions["?"]);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea");
    if (typing && event.key === "Escape") { event.target.blur(); return; }
    if (typing || (help.open && event.key !== "?") || !Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    if ("jknp".includes(event.key)) inView(browser);
    actions[event.key]();
  });
}

function inView(browser) {
  const { top, bottom } = browser.list.getBoundingClientRect();
  if (bottom < 80 || top > innerHeight - 80) document.getElementById("completions").scrollIntoView();
}

function startLinks(browser, charts) {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-show]");
    if (button) browser.show(JSON.parse(button.dataset.show));
  });
  document.addEventListener("step", ({ detail: { place, step } }) => {
    const source = [...browser.sources.values()].find((found) => found.place === place && typeof found.end === "number" && found.end > 0);
    if (source) browser.show({ source: source.key, from: step, to: step });
  });
}

class Live {
  constructor(state, browser, charts) {
    Object.assign(this, { ...state, browser, charts });
    this.sign = document.getElementById("live");
    this.ends = new Map(browser ? [...browser.sources.values()].filter((s) => s.end).map((s) => [s.key, s.end]) : []);
  }

  async ask() {
    try {
      const ends = JSON.stringify(Object.fromEntries(this.ends));
      const answer = await fetch(`state?have=${encodeURIComponent(this.version)}&ends=${encodeURIComponent(ends)}`);
      if (!answer.ok) throw new Error(String(answer.status));
      const state = answer.status === 204 ? null : await answer.json();
      this.sign.textContent = "live";
      this.sign.className = "chip good";
      if (state) await this.take(state);
    } catch {
      this.sign.textContent = "no answer";
      this.sign.className = "chip bad";
    }
    setTimeout(() => this.ask(), EVERY);
  }

  async take(state) {
    if (state.structure !== this.structure) { location.reload(); return; }
    this.version = state.version;
    document.getElementById("facts")?.replaceChildren(...state.facts.map(([name, value]) => el("div", "", el("dt", "", name), el("dd", "", value))));
    for (const [key, { spec, summary }] of Object.entries(state.charts)) {
      const chart = this.charts.get(key);
      if (!chart) continue;
      chart.update(spec);
      chart.figure.querySelector(".ends").textContent = summary;
    }
    for (const [key, { end, rows }] of Object.entries(state.rollouts)) {
      const source = this.browser.sources.get(key);
      await source.open();
      source.append(rows);
      this.ends.set(key, end);
      if (source === this.browser.source) await this.browser.filter(true);
    }
  }
}

async function start() {
  startTheme();
  if (typeof DecompressionStream === "undefined") {
    document.querySelector("main").prepend(el("p", "warning", "Charts and completions need a browser of 2023 or later."));
    return;
  }
  const { charts: specs, sources, live } = await unpack("about");
  const charts = startCharts(specs);
  const browser = sources.length ? new Browser(sources) : null;
  startKeys(browser);
  if (browser) {
    startLinks(browser, charts);
    if (!(await browser.follow(location.hash))) await browser.filter();
    addEventListener("hashchange", () => browser.follow(location.hash));
  }
  if (live) new Live(live, browser, charts).ask();
  document.documentElement.dataset.ready = "yes";
}

startTheme();
requestAnimationFrame(() => setTimeout(start, 0));
