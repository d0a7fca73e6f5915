"""The report's style sheet: one column of sections, charts side by side where there is room.

Light and dark follow the reader's system; the charts take their colours from the same variables.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --bg: #fbfbfa; --panel: #ffffff; --well: #f4f5f5; --ink: #1d2127; --soft: #656c76;
  --grid: #e5e7e9; --before: #b4bbc5; --good: #1f7a55; --bad: #b3423f;
  --c1: #3a6fdb; --c2: #d9812a; --c3: #2f9a76; --c4: #9358bd; --c5: #c9504f; --c6: #54899a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #131519; --panel: #1a1d22; --well: #21252b; --ink: #e7e9ec; --soft: #9aa2ad;
    --grid: #2d3239; --before: #6d7682; --good: #5fc79a; --bad: #ee8a86;
    --c1: #7ba4ff; --c2: #f0a55c; --c3: #5fc79a; --c4: #c493ea; --c5: #ee8a86; --c6: #86bccc;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--bg); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 56px 24px 24px; }
footer { max-width: 1160px; margin: 0 auto; padding: 0 24px 56px; color: var(--soft);
  font-size: 13px; }
section { margin-top: 64px; }
h1, h2, h3 { line-height: 1.2; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h1 { font-size: clamp(28px, 5vw, 42px); margin: 0; font-weight: 680; }
h2 { font-size: 24px; margin: 0 0 16px; font-weight: 640; }
h3 { font-size: 16px; margin: 32px 0 12px; font-weight: 620; letter-spacing: 0; }
p { margin: 0 0 12px; overflow-wrap: anywhere; }
.eyebrow { color: var(--c1); font-size: 13px; font-weight: 600; letter-spacing: 0.04em;
  margin-bottom: 8px; }
.lead { color: var(--soft); font-size: 17px; margin-top: 8px; }
.under, .note, .interval { color: var(--soft); font-size: 13px; }
.label { font-size: 13px; font-weight: 600; margin: 16px 0 8px; }
.warning { margin-top: 16px; color: var(--bad); font-size: 14px; }
.hero { display: grid; gap: 16px; margin-top: 32px; grid-template-columns: minmax(0, 1fr); }
.headline, dl, .callout, figure, .group, .problem {
  background: var(--panel); border: 1px solid var(--grid); border-radius: 12px;
}
.headline { padding: 24px 28px; align-content: center; }
.headline p { margin: 0; }
.numbers { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 16px;
  padding: 12px 0 16px; }
.value { display: inline-flex; flex-direction: column; }
.big { font-size: clamp(33px, 7vw, 60px); line-height: 1.1; font-weight: 680;
  letter-spacing: -0.03em;
  font-variant-numeric: tabular-nums; }
.value.before .big, .arrow { color: var(--soft); font-weight: 500; }
.value.after .big { color: var(--c1); }
.arrow { font-size: 32px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 16px 24px;
  margin: 0; padding: 24px 28px; align-content: center; }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 2px 0 0; font-weight: 560; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.chip { display: inline-block; padding: 1px 9px; border-radius: 99px; font-size: 12px;
  font-weight: 560;
  color: var(--soft); background: var(--well); white-space: nowrap; }
.chip.good { color: var(--good); background: color-mix(in srgb, var(--good) 13%, transparent); }
.chip.bad { color: var(--bad); background: color-mix(in srgb, var(--bad) 13%, transparent); }
.callout { padding: 18px 22px; margin-bottom: 16px; border-left: 4px solid var(--c1); }
.callout p { margin: 0 0 8px; max-width: 78ch; }
.callout p:last-child { margin: 0; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 9px 20px 9px 0; border-bottom: 1px solid var(--grid); text-align: left;
  white-space: nowrap; vertical-align: baseline; }
th.figure, td.figure { text-align: right; padding: 9px 0 9px 20px; }
.interval { margin-left: 8px; }
.charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr));
  margin: 16px 0; }
figure { margin: 0; padding: 16px 18px 10px; display: flex; flex-direction: column; }
figure .note { margin: auto 0 0; padding-top: 4px; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline; font-size: 14px;
  margin-bottom: 8px; overflow-wrap: anywhere; }
figcaption b { font-weight: 620; }
figcaption .ends { color: var(--soft); font-size: 13px; font-variant-numeric: tabular-nums;
  margin-left: auto; }
figcaption .legend { flex-basis: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 9px; height: 9px; border-radius: 3px; margin-right: 6px; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit; font-variant-numeric: tabular-nums; }
svg image { image-rendering: pixelated; }
pre, code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono",
  monospace; }
pre { margin: 0; padding: 12px 14px; border-radius: 8px; background: var(--well);
  white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 320px; overflow-y: auto; }
details { margin: 8px 0; }
summary { cursor: pointer; padding: 10px 0; font-size: 14px; }
.group { padding: 4px 18px; }
.group[open] { padding-bottom: 18px; }
.group summary { display: flex; gap: 16px; justify-content: space-between; align-items: center; }
.group summary::before { content: "›"; flex: none; color: var(--soft); font-size: 18px;
  line-height: 1; }
.group[open] summary::before { transform: rotate(90deg); }
.group .title { flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  min-width: 0; }
.marks { flex: none; }
.mark { display: inline-block; width: 9px; height: 9px; border-radius: 3px; margin-left: 3px;
  background: var(--before); }
.mark.good { background: var(--good); }
.mark.bad { background: var(--bad); }
.group > .note { margin: 12px 0; }
.beside { display: grid; gap: 16px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); align-items: start; }
.sample { min-width: 0; }
.sample .label { margin: 0 0 8px; font-weight: 500; }
.cut { color: var(--bad); }
.verdicts { list-style: none; margin: 8px 0 0; padding: 0; font-size: 13px; color: var(--soft);
  overflow-wrap: anywhere; }
.verdicts b { color: var(--ink); font-weight: 560; }
.problem { padding: 18px; margin-bottom: 16px; }
.command { font-size: 14px; margin-bottom: 12px; }
summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--c1); outline-offset: 2px; }
@media (min-width: 900px) { .hero { grid-template-columns: minmax(0, 11fr) minmax(0, 9fr); } }
@media (max-width: 600px) {
  main { padding: 32px 16px 16px; } footer { padding: 0 16px 32px; } section { margin-top: 48px; }
  .headline, dl { padding: 18px 20px; } .arrow { font-size: 22px; } .numbers { gap: 4px 12px; }
  .interval { display: block; margin: 0; } th.figure, td.figure { padding-left: 14px; }
  figure { padding: 14px 12px 8px; }
}
@media print { details { break-inside: avoid; } figure { break-inside: avoid; } }
"""
