// Charts as inline SVG, drawn from specifications (see charts.py): when they come into view, again
// when their width or figures change. Values are told under the pointer, or by the arrow keys.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 176;
const PAPER = 340; // half a page

function el(tag, cls, ...kids) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  node.append(...kids.filter((kid) => kid !== null && kid !== undefined));
  return node;
}

function draw(tag, attributes, ...kids) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...kids);
  return node;
}

// A number's text as it is rounded, but of two equally near ones the even; `exact` has all digits.
function even(rounded, exact, digits) {
  const [kept, rest] = [exact.slice(0, exact.indexOf(".") + 1 + digits), exact.slice(exact.indexOf(".") + 1 + digits)];
  if (!/^50*(e.*)?$/.test(rest)) return rounded;
  const shown = kept.replace(/\.$/, "");
  return Number(shown.at(-1)) % 2 ? rounded : shown + (rest.match(/e.*$/) || [""])[0];
}

// As `short_number` and `percent` of formatting.py write: a test holds them together.
function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const [unit, name] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]].find(([least]) => size >= least) || [1, ""];
  const scaled = size / (name === "k" ? 1e3 : unit);
  const three = even(scaled.toExponential(2), scaled.toExponential(60), 2);
  const small = scaled !== 0 && (+three < 1e-4 || scaled >= 1e5);
  let text = String(+three);
  if (scaled >= 99.95 && scaled < 1e5) text = (+even(scaled.toFixed(0), scaled.toFixed(60), 0)).toLocaleString("en");
  else if (small) text = three.replace(/\.?0+e/, "e").replace("e+", "e");
  return (value < 0 ? "−" : "") + text + name;
}

const cut = (name, most) => (name.length > most ? `${name.slice(0, most - 1)}…` : name);
const percent = (share) => `${even((100 * share).toFixed(1), (100 * share).toFixed(60), 1)}%`;

// Round marks between low and high, some `count` of them.
function marks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.7);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

// The place in rising `xs` that is nearest to x.
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}

function bounds(lists, pad) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) for (const v of list) { if (v < low) low = v; if (v > high) high = v; }
  if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
  return [low - pad * (high - low), high + pad * (high - low)];
}

// The frame of a chart: scales, grid and marks. x runs over [x0, x1], y over [y0, y1].
function frame(width, spec, [x0, x1], [y0, y1], xMarks, yMarks, write) {
  const left = Math.max(...yMarks.map((m) => write(m).length), 2) * 6.4 + 8;
  const box = { left, right: width - 10, top: 8, bottom: HEIGHT - 22 };
  const along = spec.doubling ? Math.log2 : (v) => v;
  const X = (v) => box.left + ((along(v) - along(x0)) / (along(x1) - along(x0) || 1)) * (box.right - box.left);
  const Y = (v) => box.bottom - ((v - y0) / (y1 - y0)) * (box.bottom - box.top);
  const root = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
  for (const m of yMarks) {
    if (spec.kind !== "heat") root.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(m), y2: Y(m) }));
    root.append(draw("text", { x: box.left - 6, y: Y(m) + 4, "text-anchor": "end" }, write(m)));
  }
  for (const m of xMarks) {
    const anchor = X(m) > box.right - 12 ? "end" : "middle";
    root.append(draw("text", { x: X(m), y: HEIGHT - 5, "text-anchor": anchor }, m.toLocaleString("en")));
  }
  return { root, box, X, Y };
}

const path = (xs, ys, X, Y) => xs.map((x, i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(ys[i]).toFixed(1)}`).join("");

function area(xs, low, high, X, Y) {
  const back = xs.map((x, i) => [x, low[i]]).reverse();
  return path(xs, high, X, Y) + back.map(([x, y]) => `L${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("") + "Z";
}

// Each kind gives {root, points: places along x, read(place): {x, title, rows, dots}}.
const KINDS = {
  curve(spec, width) {
    const { lines } = spec;
    const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    const range = bounds(lines.flatMap((line) => [line.y, line.low || [], line.high || []]), 0.04);
    if (spec.share) {
      const high = Math.max(...lines.flatMap((line) => line.high || line.y));
      range[0] = 0;
      range[1] = Math.min(Math.max(high * 1.04, 0.01), 1.04);
    }
    const write = spec.share ? (v) => `${+(100 * v).toFixed(2)}%` : short;
    const ends = [xs[0], xs.at(-1) === xs[0] ? xs[0] + 1 : xs.at(-1)];
    const xMarks = spec.doubling ? xs : marks(ends[0], ends[1], Math.min(5, width / 70)).filter(Number.isInteger);
    const made = frame(width, spec, ends, range, xMarks, marks(range[0], range[1], 4), write);
    const { root, X, Y } = made;
    for (const line of lines) {
      if (line.low) root.append(draw("path", { class: `band ${line.colour}`, d: area(line.x, line.low, line.high, X, Y) }));
      const whole = line.mean ? "line faint" : "line";
      root.append(draw("path", { class: `${whole} ${line.colour}`, d: path(line.x, line.y, X, Y) }));
      if (line.mean) root.append(draw("path", { class: `line ${line.colour}`, d: path(line.mean.x, line.mean.y, X, Y) }));
      if (line.x.length <= 12) for (const [i, x] of line.x.entries()) {
        root.append(draw("circle", { class: line.colour, cx: X(x), cy: Y(line.y[i]), r: 2.5 }));
      }
    }
    const say = spec.share ? percent : short;
    return {
      ...made, points: xs,
      read(x) {
        const rows = [], dots = [];
        for (const line of lines) {
          const i = nearest(line.x, x);
          if (line.x[i] !== x && lines.length > 1) continue;
          const band = line.low ? ` (${say(line.low[i])} to ${say(line.high[i])})` : "";
          rows.push([line.colour, line.label, say(line.y[i]) + band]);
          if (line.mean) rows.push(["", "running mean", say(line.mean.y[nearest(line.mean.x, x)])]);
          dots.push([X(x), Y(line.y[i]), line.colour]);
        }
        return { x: X(x), title: `${spec.doubling ? "k" : "step"} ${x.toLocaleString("en")}`, rows, dots };
      },
    };
  },

  stack(spec, width) {
    const sums = spec.rows.map((row) => { let sum = 0; return [0, ...row.map((v) => (sum += v))]; });
    const high = Math.max(...sums.map((row) => row.at(-1))) * 1.04 || 1;
    const ends = [spec.x[0], Math.max(spec.x.at(-1), spec.x[0] + 1)];
    const xMarks = marks(ends[0], ends[1], Math.min(5, width / 70)).filter(Number.isInteger);
    const made = frame(width, spec, ends, [0, high], xMarks, marks(0, high, 4), short);
    for (const [i] of spec.labels.entries()) {
      const d = area(spec.x, sums.map((row) => row[i]), sums.map((row) => row[i + 1]), made.X, made.Y);
      made.root.append(draw("path", { class: `fill ${spec.colours[i]}`, d }));
    }
    return {
      ...made, points: spec.x,
      read(x) {
        const i = nearest(spec.x, x);
        const rows = spec.labels.map((label, n) => [spec.colours[n], label, `${short(spec.rows[i][n])} s`]);
        return { x: made.X(x), title: `step ${x}`, rows: [...rows, ["", "together", `${short(sums[i].at(-1))} s`]], dots: [] };
      },
    };
  },

  heat(spec, width) {
    const experts = spec.rows[0].length;
    const xs = spec.x.map(([first]) => first);
    const ends = [xs[0], Math.max(spec.x.at(-1)[1], xs[0] + 1)];
    const xMarks = marks(ends[0], ends[1], Math.min(5, width / 70)).filter(Number.isInteger);
    const yMarks = marks(0, experts - 1, Math.min(experts, 6)).filter(Number.isInteger);
    const made = frame(width, spec, ends, [experts - 0.5, -0.5], xMarks, yMarks, String);
    const canvas = el("canvas");
    canvas.width = spec.rows.length;
    canvas.height = experts;
    const pen = canvas.getContext("2d");
    for (const [i, row] of spec.rows.entries()) for (const [n, share] of row.entries()) {
      pen.fillStyle = `rgba(70, 120, 230, ${Math.min(1, (share * experts) / 2)})`;
      pen.fillRect(i, n, 1, 1);
    }
    const { box } = made;
    const of = (part, whole) => `${(100 * part) / whole}%`; // of a plot that paper may shrink
    Object.assign(canvas.style, { left: of(box.left, width), top: of(box.top, HEIGHT),
      width: of(box.right - box.left, width), height: of(box.bottom - box.top, HEIGHT) });
    return {
      ...made, canvas, points: xs,
      read(x, y) {
        const i = nearest(xs, x);
        const row = spec.rows[i];
        const most = row.indexOf(Math.max(...row)), least = row.indexOf(Math.min(...row));
        const rows = [["", `most: expert ${most}`, percent(row[most])], ["", `least: expert ${least}`, percent(row[least])]];
        const at = y === null ? -1 : Math.floor(((y - box.top) / (box.bottom - box.top)) * experts);
        if (at >= 0 && at < experts) rows.unshift(["c1", `expert ${at}`, percent(row[at])]);
        const [first, last] = spec.x[i];
        return { x: made.X(x), title: first === last ? `step ${first}` : `steps ${first} to ${last}`, rows, dots: [] };
      },
    };
  },

  bars(spec, width) {
    let y = 0;
    const lines = [];
    for (const group of spec.groups) {
      lines.push({ y: (y += 18), name: group.name });
      for (const bar of group.bars) lines.push({ y: (y += 16), bar, name: group.name });
      y += 8;
    }
    const longest = Math.max(...lines.map((line) => line.bar?.label.length ?? 0));
    const height = y + 26, left = spec.named ? Math.min(longest, 14) * 6.5 + 6 : 0;
    const X = (share) => left + share * (width - 52 - left);
    const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const m of [0, 0.25, 0.5, 0.75, 1]) {
      root.append(draw("line", { class: "grid", x1: X(m), x2: X(m), y1: 4, y2: height - 20 }));
      root.append(draw("text", { x: X(m), y: height - 5, "text-anchor": m ? "middle" : "start" }, `${100 * m}%`));
    }
    const most = Math.floor(width / 7);
    for (const { y: at, bar, name } of lines) {
      if (!bar) {
        root.append(draw("text", { class: "name", x: 0, y: at }, cut(name, most)));
        continue;
      }
      if (spec.named) root.append(draw("text", { x: 0, y: at + 2 }, cut(bar.label, 14)));
      root.append(draw("rect", { class: bar.colour, x: left, y: at - 8, width: Math.max(1, X(bar.value) - left), height: 11, rx: 2 }));
      if (bar.interval) {
        const [low, high] = bar.interval.map(X);
        root.append(draw("path", { class: "whisker", d: `M${low} ${at - 2.5}H${high}M${low} ${at - 6}v7M${high} ${at - 6}v7` }));
      }
      const end = bar.interval ? Math.max(bar.interval[1], bar.value) : bar.value;
      root.append(draw("text", { x: X(end) + 6, y: at + 2 }, percent(bar.value)));
    }
    const found = lines.filter((line) => line.bar);
    return {
      root, box: { top: 0, bottom: height - 20 }, points: found.map((_, i) => i), across: true,
      place: (x, py) => nearest(found.map((line) => line.y - 2), py),
      read(i) {
        const { bar, name, y: at } = found[i];
        const rows = [[bar.colour, bar.label, percent(bar.value)]];
        if (bar.interval) rows.push(["", "95% interval", bar.interval.map(percent).join(" to ")]);
        return { x: X(bar.value), y: at, title: name, rows, dots: [] };
      },
    };
  },
};

class Chart {
  constructor(figure, spec) {
    this.figure = figure;
    this.plot = figure.querySelector(".plot");
    this.tip = el("div", "tip");
    this.tip.hidden = true;
    this.spec = spec;
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.hide());
    this.plot.addEventListener("blur", () => this.hide());
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("click", () => this.open());
  }

  draw(width = Math.max(240, Math.floor(this.plot.clientWidth))) {
    this.width = width;
    this.made = KINDS[this.spec.kind](this.spec, width);
    this.cross = draw("g", { class: "cross" });
    this.made.root.append(this.cross);
    this.plot.replaceChildren(...[this.made.canvas, this.made.root, this.tip].filter(Boolean));
    this.at = null;
    this.tip.hidden = true;
  }

  point(event) {
    if (!this.made) return;
    const outer = this.plot.getBoundingClientRect();
    const x = event.clientX - outer.left, y = event.clientY - outer.top;
    const { points, X, place } = this.made;
    const at = place ? place(x, y) : nearest(points.map(X), x);
    this.show(at, y);
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (event.key === "Enter") this.open();
    if (!move || !this.made) return;
    event.preventDefault();
    const last = this.made.points.length - 1;
    this.show(this.at === null ? last : Math.max(0, Math.min(last, this.at + move)), null);
  }

  show(at, y) {
    this.at = at;
    const said = this.made.read(this.made.points[at], y);
    const { box, across } = this.made;
    this.cross.replaceChildren(...said.dots.map(([cx, cy, colour]) => draw("circle", { class: colour, cx, cy, r: 3.5 })));
    if (!across) this.cross.prepend(draw("line", { x1: said.x, x2: said.x, y1: box.top, y2: box.bottom }));
    this.tip.replaceChildren(el("b", "", said.title), ...said.rows.map(([colour, label, value]) =>
      el("div", "", el("i", colour ? `dot ${colour}` : "dot none"), el("span", "", label), el("b", "", value))));
    this.tip.hidden = false;
    const beside = said.x - this.tip.offsetWidth / 2; // under the curve, so that it hides none
    this.tip.style.left = `${Math.max(0, Math.min(this.width - this.tip.offsetWidth, beside))}px`;
    this.tip.style.top = `${across ? said.y + 6 : box.bottom + 4}px`;
  }

  hide() {
    this.at = null;
    this.tip.hidden = true;
    if (this.cross) this.cross.replaceChildren();
  }

  // The completions of the step that is read.
  open() {
    const place = this.figure.dataset.chart.split("/")[0];
    if (this.at === null || !this.made || !place.startsWith("stage-") || !KINDS[this.spec.kind]) return;
    const step = this.made.points[this.at];
    this.figure.dispatchEvent(new CustomEvent("step", { bubbles: true, detail: { place, step } }));
  }

  update(spec) {
    this.spec = spec;
    if (this.made) this.draw();
  }
}

// Charts by their key, drawn as they come into view, and all of them for paper.
function startCharts(specs) {
  const charts = new Map();
  addEventListener("beforeprint", () => {
    for (const chart of charts.values()) chart.draw(PAPER);
  });
  addEventListener("afterprint", () => {
    for (const chart of charts.values()) chart.draw();
  });
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const chart = charts.get(entry.target.dataset.chart);
      if (entry.isIntersecting && chart && !chart.made) chart.draw();
    }
  }, { rootMargin: "300px" });
  const sized = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const chart = charts.get(entry.target.closest("figure").dataset.chart);
      const width = Math.max(240, Math.floor(entry.contentRect.width));
      if (chart?.made && entry.contentRect.width && chart.width !== width) chart.draw();
    }
  });
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const spec = specs[figure.dataset.chart];
    if (!spec || charts.has(figure.dataset.chart)) continue;
    const chart = new Chart(figure, spec);
    charts.set(figure.dataset.chart, chart);
    seen.observe(figure);
    sized.observe(chart.plot);
  }
  return charts;
}
