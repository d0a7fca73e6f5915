// The browser of completions: sources (see browse.py) unpacked when needed, filtered, listed row by
// row as they scroll into view, shown with their group, what the rewards said, and differences.

const ROW = 46; // pixels, as in the style sheet
const [CUT, FAULT, ABSTAINED] = [1, 2, 4];
const DIFF_CELLS = 6e6; // of the table of common words

async function unpack(id) {
  const text = atob(document.getElementById(`pack-${id}`).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

class Source {
  constructor(about) {
    Object.assign(this, about);
    this.parts = new Map();
    this.added = []; // what came while the page was open
  }

  async open() {
    if (this.index) return;
    this.index = await unpack(this.key);
    this.packed = this.index.group.length;
    this.groups = new Map();
    this.numbers = new Map(this.index.groups.map(([key], number) => [key, number]));
    for (const i of this.index.group.keys()) this.join(i);
  }

  get count() { return this.index.group.length; }

  join(i) {
    const { group, reward } = this.index;
    const found = this.groups.get(group[i]) || { members: [], low: Infinity, high: -Infinity, sum: 0, scored: 0 };
    found.members.push(i);
    if (reward[i] !== null) {
      found.low = Math.min(found.low, reward[i]);
      found.high = Math.max(found.high, reward[i]);
      found.sum += reward[i];
      found.scored += 1;
    }
    this.groups.set(group[i], found);
  }

  // Rows of a run that still trains, as browse.appended writes them.
  append(rows) {
    for (const [where, reward, advantage, flags, size, key, prompt, answer, completion, said, turns = []] of rows) {
      if (!this.numbers.has(key)) {
        const [start, end] = this.index.ends;
        const title = (prompt.slice(start, prompt.length - end).trim() || prompt).replace(/\s+/g, " ").slice(0, 160);
        this.numbers.set(key, this.index.groups.length);
        this.index.groups.push([key, title]);
      }
      const columns = { where, reward, advantage, flags, size, group: this.numbers.get(key) };
      for (const [name, value] of Object.entries(columns)) this.index[name].push(value);
      this.added.push({ prompt, answer, completion, said, turns });
      this.join(this.count - 1);
    }
  }

  async texts(i) {
    if (i >= this.packed) return this.added[i - this.packed];
    const number = Math.floor(i / this.index.part);
    if (!this.parts.has(number)) this.parts.set(number, unpack(`${this.key}-${number}`));
    const part = await this.parts.get(number);
    const [completion, said, turns = []] = part.rows[i % this.index.part];
    const [prompt, answer] = part.prompts[this.index.group[i]];
    return { prompt, answer, completion, said, turns };
  }

  async experts(step) {
    if (!document.getElementById(`pack-${this.key}-experts`)) return null;
    this.loads ||= unpack(`${this.key}-experts`);
    return (await this.loads)[step] || null;
  }

  group(i) { return this.groups.get(this.index.group[i]); }

  title(i) { return this.index.groups[this.index.group[i]][1]; }

  // Better (1) or worse (-1) than its group.
  tone(i) {
    const { advantage, reward } = this.index;
    if (advantage[i] !== null) return Math.sign(advantage[i]);
    const { sum, scored } = this.group(i);
    return reward[i] === null ? 0 : Math.sign(reward[i] - sum / scored);
  }

  passes(i, wanted) {
    const { where, reward, flags } = this.index;
    if (wanted.from !== null && !(where[i] >= wanted.from)) return false;
    if (wanted.to !== null && !(where[i] <= wanted.to)) return false;
    if (wanted.low !== null && !(reward[i] !== null && reward[i] >= wanted.low)) return false;
    if (wanted.high !== null && !(reward[i] !== null && reward[i] <= wanted.high)) return false;
    switch (wanted.outcome) {
      case "above": return this.tone(i) > 0;
      case "below": return this.tone(i) < 0;
      case "mixed": return this.group(i).low < this.group(i).high;
      case "truncated": return (flags[i] & CUT) > 0;
      case "abstained": return (flags[i] & ABSTAINED) > 0;
      case "fault": return (flags[i] & FAULT) > 0;
      default: return true;
    }
  }

  ordered(found, order) {
    const { reward, size, where } = this.index;
    const low = (i) => (reward[i] === null ? -Infinity : reward[i]);
    const by = {
      new: (a, b) => (where[b] > where[a]) - (where[b] < where[a]) || a - b,
      high: (a, b) => low(b) - low(a) || a - b,
      low: (a, b) => low(a) - low(b) || a - b,
      long: (a, b) => size[b] - size[a] || a - b,
    }[order];
    return by ? found.sort(by) : found;
  }

  async containing(found, text) {
    const needle = text.toLowerCase(), kept = [];
    for (const i of found) {
      const { prompt, answer, completion, said } = await this.texts(i);
      const words = said.map(([name, , reason]) => `${name} ${reason}`).join("\n");
      if (`${prompt}\n${answer}\n${completion}\n${words}`.toLowerCase().includes(needle)) kept.push(i);
    }
    return kept;
  }
}

// Words that only one of two texts has: [[kind, text]], kind "" in both, "del" in a, "ins" in b.
function differences(a, b) {
  const split = (text) => text.match(/\s+|\w+|[^\w\s]/gu) || [];
  const [x, y] = [split(a), split(b)];
  let start = 0, end = 0;
  while (start < x.length && start < y.length && x[start] === y[start]) start++;
  while (end < x.length - start && end < y.length - start && x.at(-1 - end) === y.at(-1 - end)) end++;
  const [p, q] = [x.slice(start, x.length - end), y.slice(start, y.length - end)];
  const parts = [["", x.slice(0, start)]];
  if ((p.length + 1) * (q.length + 1) > DIFF_CELLS) {
    parts.push(["del", p], ["ins", q]);
  } else {
    const width = q.length + 1, common = new Uint16Array((p.length + 1) * width);
    for (let i = p.length - 1; i >= 0; i--) for (let j = q.length - 1; j >= 0; j--) {
      common[i * width + j] = p[i] === q[j]
        ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
    let i = 0, j = 0;
    while (i < p.length || j < q.length) {
      if (i < p.length && j < q.length && p[i] === q[j]) { parts.push(["", [p[i]]]); i++; j++; }
      else if (j >= q.length || (i < p.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) parts.push(["del", [p[i++]]]);
      else parts.push(["ins", [q[j++]]]);
    }
  }
  parts.push(["", x.slice(x.length - end)]);
  const merged = [];
  for (const [kind, words] of parts) {
    if (merged.length && merged.at(-1)[0] === kind) merged.at(-1)[1] += words.join("");
    else merged.push([kind, words.join("")]);
  }
  return merged.filter(([, text]) => text);
}

const TONES = { "-1": "bad", 0: "even", 1: "good" };
const field = (form, name) => (form[name].value.trim() === "" ? null : Number(form[name].value));

class Browser {
  constructor(abouts) {
    this.form = document.getElementById("filters");
    this.list = document.querySelector(".browser .list");
    this.rows = this.list.querySelector(".rows");
    this.detail = document.querySelector(".browser .detail");
    this.told = document.getElementById("found");
    this.sources = new Map(abouts.map((about) => [about.key, new Source(about)]));
    this.found = [];
    this.at = -1; // place in `found`
    this.differs = false;
    this.turn = 0;
    this.list.addEventListener("scroll", () => this.paint(), { passive: true });
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("[data-at]");
      if (row) this.select(Number(row.dataset.at), true);
    });
    this.list.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (by) { event.preventDefault(); this.step(by); }
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", () => { clearTimeout(this.wait); this.wait = setTimeout(() => this.filter(), 120); });
    this.form.addEventListener("reset", (event) => { event.preventDefault(); this.show({}); });
    new ResizeObserver(() => this.paint()).observe(this.list);
  }

  get source() { return this.sources.get(this.form.source.value); }

  wanted() {
    const [from, to, low, high] = ["from", "to", "low", "high"].map((name) => field(this.form, name));
    const { outcome, text, order } = this.form;
    return { from, to, low, high, outcome: outcome.value, text: text.value.trim(), order: order.value };
  }

  // Set the filters (those not named are cleared, the source stays) and show what they find.
  async show(wanted) {
    const all = { source: this.form.source.value, ...wanted };
    for (const { name } of this.form.elements) if (name) this.form[name].value = all[name] ?? "";
    document.getElementById("completions").scrollIntoView();
    await this.filter();
  }

  // `keep`: stay where the reader is.
  async filter(keep = false) {
    const turn = ++this.turn, source = this.source, wanted = this.wanted();
    await source.open();
    for (const name of ["from", "to"]) this.form[name].closest("label").hidden = typeof source.index.where[0] !== "number";
    let found = [];
    for (let i = 0; i < source.count; i++) if (source.passes(i, wanted)) found.push(i);
    if (wanted.text) {
      this.told.textContent = "searching…";
      found = await source.containing(found, wanted.text);
    }
    if (turn !== this.turn) return;
    const shown = keep && this.at >= 0 ? this.found[this.at] : null;
    this.found = source.ordered(found, wanted.order);
    this.told.textContent = `${found.length.toLocaleString("en")} of ${source.count.toLocaleString("en")} completions. ${source.note}`;
    this.rows.style.height = `${this.found.length * ROW}px`;
    this.at = keep ? this.found.indexOf(shown) : -1;
    if (!keep) { this.list.scrollTop = 0; this.close(); }
    this.painted = null;
    this.paint();
    if (!keep && this.found.length && matchMedia("(min-width: 761px)").matches) this.select(0);
  }

  paint() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 4);
    const last = Math.min(this.found.length, first + Math.ceil(this.list.clientHeight / ROW) + 8);
    if (this.painted === `${first} ${last} ${this.at}`) return;
    this.painted = `${first} ${last} ${this.at}`;
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this.row(at));
    this.rows.replaceChildren(...rows);
  }

  row(at) {
    const i = this.found[at], { source } = this;
    const { reward, flags } = source.index;
    const row = el("div", "row",
      el("i", `mark ${TONES[source.tone(i)]}`),
      el("b", "", short(reward[i])),
      el("span", "title", source.title(i)),
      el("span", "where", this.place(i) + (flags[i] & CUT ? " · cut off" : "") + (flags[i] & FAULT ? " · fault" : "")));
    row.dataset.at = at;
    row.id = `row-${at}`;
    row.style.top = `${at * ROW}px`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(at === this.at));
    return row;
  }

  place(i) {
    const { where } = this.source.index;
    const { members } = this.source.group(i);
    const number = `${members.indexOf(i) + 1} of ${members.length}`;
    return typeof where[i] === "number" ? `step ${where[i].toLocaleString("en")} · ${number}` : `${where[i]} · ${number}`;
  }

  // `open`: asked for by a reader, who wants it in view on a small screen too.
  async select(at, open = false) {
    if (at < 0 || at >= this.found.length) return;
    this.at = at;
    const top = at * ROW, { list } = this;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    this.paint();
    list.setAttribute("aria-activedescendant", `row-${at}`);
    await this.present(this.found[at]);
    if (open) {
      document.body.dataset.detail = "open";
      this.detail.scrollTop = 0;
      if (this.source) history.replaceState(null, "", `#completion=${this.source.key}/${this.found[at]}`);
    }
  }

  close() {
    delete document.body.dataset.detail;
    this.detail.replaceChildren();
  }

  step(by) { this.select(Math.max(0, Math.min(this.found.length - 1, this.at + by)), true); }

  // The next or previous prompt among those found.
  leap(by) {
    const { group } = this.source.index;
    let at = this.at;
    while (this.found[at + by] !== undefined) {
      at += by;
      if (group[this.found[at]] !== group[this.found[this.at]]) break;
    }
    this.select(at, true);
  }

  async follow(hash) {
    const [, key, number] = hash.match(/^#completion=([\w-]+)\/(\d+)$/) || [];
    if (!this.sources.has(key)) return false;
    await this.show({ source: key });
    const at = this.found.indexOf(Number(number));
    await this.select(Math.max(0, at), true);
    return true;
  }

  async present(i) {
    const { source } = this, turn = (this.presented = {});
    const { advantage, reward, flags, where } = source.index;
    const { members } = source.group(i);
    const texts = await source.texts(i);
    const loads = typeof where[i] === "number" ? await source.experts(where[i]) : null;
    const rival = this.rival(i, members);
    const other = rival === null ? null : await source.texts(rival);
    if (turn !== this.presented) return;
    const back = el("button", "back", "‹ list");
    back.addEventListener("click", () => delete document.body.dataset.detail);
    const signed = advantage[i] === null ? null : `advantage ${advantage[i] > 0 ? "+" : ""}${short(advantage[i])}`;
    this.detail.replaceChildren(...[
      el("p", "label", back, el("span", "", this.place(i)),
        el("span", `chip ${TONES[source.tone(i)]}`, `reward ${short(reward[i])}`),
        signed && el("span", "under", signed), flags[i] & CUT ? el("span", "chip bad", "cut off") : null),
      this.siblings(i, members, rival),
      el("pre", "prompt", texts.prompt),
      texts.answer ? el("p", "note", "Expected answer: ", el("code", "", texts.answer)) : null,
      other ? this.compared(other.completion, texts.completion, rival) : this.inTurns(texts),
      el("ul", "verdicts", ...texts.said.map((said) => this.verdict(said))),
      loads && this.loads(loads, where[i]),
    ].filter(Boolean));
  }

  // The completion that this one is held against: the one chosen, else the most different reward.
  rival(i, members) {
    if (!this.differs || members.length < 2) return null;
    if (members.includes(this.chosen) && this.chosen !== i) return this.chosen;
    const { reward } = this.source.index;
    const far = (k) => Math.abs((reward[k] ?? 0) - (reward[i] ?? 0));
    return members.filter((k) => k !== i).reduce((best, k) => (far(k) > far(best) ? k : best));
  }

  siblings(i, members, rival) {
    if (members.length < 2) return null;
    const { source } = this;
    const strip = el("div", "strip");
    for (const [number, k] of members.entries()) {
      const button = el("button", TONES[source.tone(k)], short(source.index.reward[k]));
      button.type = "button";
      button.title = `${this.place(k)}`;
      button.setAttribute("aria-label", `completion ${number + 1}, reward ${short(source.index.reward[k])}`);
      button.setAttribute("aria-current", String(k === i));
      if (k === rival) button.classList.add("rival");
      button.addEventListener("click", (event) => {
        if (event.shiftKey && k !== i) { this.differs = true; this.chosen = k; this.present(i); return; }
        const at = this.found.indexOf(k);
        if (at >= 0) this.select(at, true); else this.present(k);
      });
      strip.append(button);
    }
    const toggle = el("button", "differ", this.differs ? "hide differences" : "differences");
    toggle.type = "button";
    toggle.title = "d; with Shift, click the completion to compare with";
    toggle.addEventListener("click", () => this.differ());
    strip.append(toggle);
    return strip;
  }

  differ() {
    this.differs = !this.differs;
    this.chosen = null;
    if (this.at >= 0) this.present(this.found[this.at]);
  }

  compared(before, now, rival) {
    const parts = differences(before, now).map(([kind, text]) => (kind ? el(kind, "", text) : document.createTextNode(text)));
    return el("div", "", el("p", "note", "Against ", this.place(rival), ": ", el("del", "", "only there"), " ", el("ins", "", "only here")), el("pre", "", ...parts));
  }

  // What the policy wrote, and apart from it what tools gave.
  inTurns({ completion, turns }) {
    const shown = el("div", "turns");
    let at = 0;
    for (const [start, end, kind, told] of turns) {
      if (start > at) shown.append(el("pre", "", completion.slice(at, start)));
      const good = kind === "ok" || kind === "cut";
      shown.append(el("div", "given", el("p", good ? "" : "failed", told), el("pre", "", completion.slice(start, end).trim())));
      at = end;
    }
    if (at < completion.length || !turns.length) shown.append(el("pre", "", completion.slice(at)));
    return shown;
  }

  verdict([name, value, reason, outcome]) {
    const said = outcome === "score" ? short(value) : el("span", "chip bad", outcome);
    return el("li", "", el("b", "", name), " ", said, reason ? ` – ${reason}` : "");
  }

  loads(layers, step) {
    const rows = Object.entries(layers).map(([name, shares]) => {
      const most = Math.max(...shares, 2 / shares.length);
      const bars = shares.map((share, n) => {
        const bar = el("i");
        bar.style.height = `${Math.max(4, (100 * share) / most)}%`;
        bar.title = `expert ${n}: ${percent(share)}`;
        return bar;
      });
      return el("div", "load", el("span", "under", name.replace("experts/load/", "")), el("span", "columns", ...bars));
    });
    return el("details", "", el("summary", "", `Experts at step ${step}: shares of its tokens`), ...rows);
  }
}
