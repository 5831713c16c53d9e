"use strict";
// Charts by Bokeh. The colours are the colour-blind safe ones of Okabe and Ito; lines also differ in marker and dash.
// The data of every chart can be saved as CSV.

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7A00"];
const MARKERS = ["circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "x"];

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Escape text for a chart: Bokeh renders text between double dollars as a formula. */
const plain = (text) => String(text).replaceAll("$$", "$\u200b$");

/** An empty plot in the colours of the page. */
function plot(options) {
  const made = Bokeh.Plotting.figure({
    height: 300, sizing_mode: "stretch_width", toolbar_location: null, tools: "", background_fill_color: null,
    border_fill_color: null, outline_line_color: null, min_border_right: 12, ...options,
  });
  const text = ink("text"), line = ink("line");
  for (const axis of [...made.above, ...made.below, ...made.left]) {
    axis.axis_label_text_color = axis.major_label_text_color = text;
    axis.axis_label_text_font_style = "normal";
    axis.axis_line_color = axis.major_tick_line_color = ink("soft");
    axis.minor_tick_line_color = null;
  }
  for (const grid of made.center) if (grid instanceof Bokeh.Grid) grid.grid_line_color = line;
  return made;
}

/** A figure with a plot and its buttons; `ready` is called with the rendered view. */
function chart(name, caption, made, headings, rows, { ready = null, extra = [] } = {}) {
  const place = el("div", { class: "chart", role: "img", "aria-label": caption });
  let view = null;
  const save = async (kind) => {
    const blob = await view.export(kind, false).to_blob();
    download(`${name}.${kind}`, blob);
  };
  const button = (kind) => el("button", { type: "button", class: "small", "aria-label": `save ${name} as ${kind.toUpperCase()}`,
    click: () => save(kind) }, kind.toUpperCase());
  drawings.push(async () => {
    view = await Bokeh.Plotting.show(made, place);
    charts.set(name, view);
    ready?.(view, place);
  });
  return figure(caption, [...extra, button("svg"), button("png"), csvButton(name, headings, rows)], place);
}

/** Plots are drawn after their elements have been added to the page and have a width. */
const drawings = [], charts = new Map();
function drawAll() {
  for (const view of charts.values()) view.remove(); // charts of the previous view
  charts.clear();
  for (const draw of drawings.splice(0)) draw();
}

/** Lines over K. Series: {name, points: [[k, value]...], group (selects colour and marker), dashed}. */
function curves(name, caption, series, label) {
  const ks = [...new Set(series.flatMap((line) => line.points.map(([k]) => k)))].sort((a, b) => a - b);
  const made = plot({ x_axis_type: "log", x_axis_label: "K", y_axis_label: plain(label), tools: "hover",
    x_range: [ks[0] * 0.85, ks[ks.length - 1] * 1.18] });
  useTicks(made, 0, new Bokeh.FixedTicker({ ticks: ks }));
  made.below[0].formatter = new Bokeh.BasicTickFormatter({ use_scientific: false });
  made.left[0].formatter = new Bokeh.NumeralTickFormatter({ format: "0,0.[0000]" });
  const legend = series.map((line) => {
    const colour = COLOURS[line.group % COLOURS.length];
    const source = new Bokeh.ColumnDataSource({ data: { x: line.points.map(([k]) => k), y: line.points.map(([, v]) => v) } });
    const drawn = made.line({ x: { field: "x" }, y: { field: "y" }, source, line_color: colour, line_width: 2,
      line_dash: line.dashed ? "dashed" : "solid" });
    const dots = made.scatter({ x: { field: "x" }, y: { field: "y" }, source, size: 8, line_color: colour,
      marker: MARKERS[line.group % MARKERS.length], fill_color: line.dashed ? ink("page") : colour });
    return new Bokeh.LegendItem({ label: { value: plain(line.name) }, renderers: [drawn, dots] });
  });
  made.add_layout(new Bokeh.Legend({ items: legend, location: "center", orientation: "horizontal", ncols: 2,
    background_fill_color: null, border_line_color: null, label_text_color: ink("text"), label_text_font_size: "12px",
    padding: 0, margin: 4 }), "above");
  hover(made, [["K", "@x"], [plain(label), "@y{0.[0000]}"]]);
  const rows = series.flatMap((line) => line.points.map(([k, value]) => [line.name, k, value]));
  return chart(name, caption, made, ["series", "K", label], rows);
}

/** Set the ticks of the horizontal axis, and the grid lines of a dimension to match. */
function useTicks(made, dimension, ticker) {
  made.below[0].ticker = ticker;
  for (const grid of made.center) if (grid instanceof Bokeh.Grid && grid.dimension === dimension) grid.ticker = ticker;
}

function hover(made, tooltips) {
  for (const tool of made.toolbar.tools) if (tool instanceof Bokeh.HoverTool) tool.tooltips = tooltips;
}

/** Horizontal bars. */
function bars(name, caption, names, values, label) {
  const factors = names.map(plain);
  const made = plot({ y_range: [...factors].reverse(), height: 70 + 24 * names.length, x_axis_label: label, tools: "hover" });
  made.x_range.start = 0;
  made.below[0].formatter = new Bokeh.NumeralTickFormatter({ format: "0,0.[00]" });
  const source = new Bokeh.ColumnDataSource({ data: { y: factors, right: values } });
  made.hbar({ y: { field: "y" }, right: { field: "right" }, left: 0, height: 0.7, source,
    fill_color: COLOURS[0], line_color: null });
  made.center.forEach((grid) => { if (grid instanceof Bokeh.Grid && grid.dimension === 1) grid.grid_line_color = null; });
  hover(made, [["", "@y"], [label, "@right{0,0.[00]}"]]);
  return chart(name, caption, made, ["name", label], names.map((text, i) => [text, values[i]]));
}

/** Histogram on a logarithmic axis, with a dashed line at the median. */
function histogram(name, caption, edges, counts, median, label) {
  const made = plot({ x_axis_type: "log", x_axis_label: label, y_axis_label: "images", height: 220,
    y_range: [0, 1.08 * Math.max(...counts)] });
  made.quad({ left: edges.slice(0, -1), right: edges.slice(1), top: counts, bottom: 0, fill_color: COLOURS[0],
    line_color: ink("page") });
  made.line({ x: [median, median], y: [0, 1.08 * Math.max(...counts)], line_color: COLOURS[1], line_dash: "dashed",
    line_width: 3 });
  useTicks(made, 0, new Bokeh.LogTicker({ desired_num_ticks: 5 }));
  made.below[0].formatter = new Bokeh.NumeralTickFormatter({ format: "0,0.[0000]" });
  return chart(name, caption, made, ["from", "to", "images"], counts.map((n, i) => [edges[i], edges[i + 1], n]));
}

/** Call a function with the indices selected by a click. */
function onSelect(source, act) {
  source.selected.properties.indices.change.connect(() => {
    if (source.selected.indices.length) act(source.selected.indices);
  });
}
