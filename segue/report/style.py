"""The page's looks (CSS) and its script, which draws the figures in the reader's light or dark scheme."""

CSS = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1f2429; --soft: #5b6570; --rule: #e1e5ea;
  --panel: #f6f8fa; --online: rgba(30, 60, 110, 0.055); --note: #fff7e0; --note-rule: #e0b84c; --link: #0b62b8; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --ink: #e4e8ec; --soft: #9ba6b2; --rule: #2c343d;
  --panel: #1b2128; --online: rgba(160, 190, 255, 0.07); --note: #2b2515; --note-rule: #8a6d1f; --link: #6cb0f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.3rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 0.4rem; padding-top: 1.2rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 2rem 0 0.1rem; }
p { margin: 0.3rem 0; max-width: 46rem; }
.soft, .reading, td small, figcaption { color: var(--soft); }
.reading { font-size: 0.93rem; }
.notes { background: var(--note); border-left: 4px solid var(--note-rule); padding: 0.6rem 1rem; margin: 1rem 0;
  border-radius: 0 6px 6px 0; font-size: 0.93rem; overflow-wrap: anywhere; }
.notes ul { margin: 0.2rem 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; margin: 0.8rem 0 0.4rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.93rem; }
th { text-align: left; font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: nowrap; }
th, td { padding: 0.5rem 0.8rem 0.5rem 0; border-bottom: 1px solid var(--rule); }
td { vertical-align: top; }
td small { display: block; font-size: 0.8rem; }
td:not(:first-child) small { white-space: nowrap; }
td strong { font-size: 1.05rem; }
.even { white-space: nowrap; }
.swatch { display: inline-block; width: 0.75rem; height: 0.75rem; border-radius: 3px; margin-right: 0.45rem; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; color: var(--link); }
pre { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; padding: 0.6rem 0.8rem;
  margin: 0.4rem 0; overflow-x: auto; font: 0.83rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.run { margin: 0.8rem 0 1rem; }
.run details, .run pre { margin: 0.25rem 0; }
.figure { min-height: 300px; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--rule); font-size: 0.85rem;
  color: var(--soft); }
"""

SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
// Plotly gives a legend below the figure no room of its own: lay its entries out as plotly will, and count the rows.
function legendRows(data, width) {
  let rows = 0, used = width;
  for (const trace of data.filter(trace => trace.name && trace.showlegend !== false)) {
    const entry = 44 + 7.1 * trace.name.length;
    if (used + entry > width) { rows += 1; used = 0; }
    used += entry;
  }
  return rows;
}
function draw() {
  const css = getComputedStyle(document.documentElement);
  const colour = name => css.getPropertyValue("--" + name).trim();
  for (const [id, figure] of Object.entries(figures)) {
    const layout = structuredClone(figure.layout);
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { color: colour("ink"), size: 13, family: getComputedStyle(document.body).fontFamily };
    layout.hoverlabel = { bgcolor: colour("panel"), bordercolor: colour("rule"), font: { color: colour("ink") } };
    const rows = legendRows(figure.data, document.getElementById(id).clientWidth - 90);
    layout.margin.b += 26 * rows;
    layout.height += 26 * rows;
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("ink") };
    for (const key of Object.keys(layout).filter(key => /^[xy]axis/.test(key))) {
      Object.assign(layout[key], { gridcolor: colour("rule"), linecolor: colour("soft"), showline: true,
        tickcolor: colour("soft"), ticks: "outside", ticklen: 4 });
    }
    for (const shape of layout.shapes) {
      if (shape.name === "ground") shape.fillcolor = colour("online");
      if (shape.name === "ink") shape.line.color = colour("ink");
    }
    Plotly.react(id, figure.data, layout, { responsive: true, displaylogo: false,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      toImageButtonOptions: { filename: id, scale: 2 } });
  }
}
draw();
dark.addEventListener("change", draw);
"""
