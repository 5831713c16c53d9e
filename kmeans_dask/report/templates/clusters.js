"use strict";
// Views of one model: its clusters, one cluster, the confusion matrix, one of its cells.

const modelId = (model) => `${model.algorithm}-${model.k}`;
const modelName = (model) => `${model.algorithm}, K = ${model.k}`;
const clusterLink = (model, cluster, ...content) => el("a", { href: `#cluster/${modelId(model)}/${cluster}` }, ...content);

const ORDERS = {
  number: ["number", (model) => (c) => c],
  size: ["size", (model) => (c) => -model.size[c]],
  label: ["label", (model) => (c) => labelName(model.label[c])],
  impure: ["purity, lowest first", (model) => (c) => model.purity[c]],
  pure: ["purity, highest first", (model) => (c) => (model.purity[c] === null ? null : -model.purity[c])],
  wide: ["mean radius, largest first", (model) => (c) => (model.radius_mean[c] === null ? null : -model.radius_mean[c])],
};

const gallery = { order: "size", needle: "", label: "", purity: 100 };

function clusters(model) {
  const cards = el("div", { class: "cards" }), status = el("p", { class: "soft", role: "status" });
  function chosen() {
    const key = ORDERS[gallery.order][1](model), needle = gallery.needle.toLowerCase();
    return [...model.size.keys()]
      .filter((c) => gallery.label === "" || model.label[c] === Number(gallery.label))
      .filter((c) => gallery.purity >= 100 || (model.purity[c] ?? 0) * 100 <= gallery.purity)
      .filter((c) => !needle || `${c} ${labelName(model.label[c])}`.toLowerCase().split(" ").some((word) => word.startsWith(needle)))
      .sort((a, b) => compare(key(a), key(b)) || a - b);
  }
  function fill() {
    const found = chosen();
    cards.replaceChildren(...found.map((c) => card(model, c)));
    status.textContent = `${found.length} of ${model.k} clusters`;
  }
  const change = (name) => (value) => { gallery[name] = value; fill(); };
  const labels = [...new Set(model.label)].sort((a, b) => a - b).map((label) => [String(label), labelName(label)]);
  if (gallery.label !== "" && !model.label.includes(Number(gallery.label))) gallery.label = "";
  const limit = el("output", {}, `${gallery.purity} %`);
  fill();
  return [
    el("h2", {}, `Clusters of ${modelName(model)}`),
    el("div", { class: "controls" },
      el("label", {}, "Search ", el("input", { type: "search", placeholder: "number or label", value: gallery.needle,
        input: (event) => change("needle")(event.target.value) })),
      select("Sort by", Object.entries(ORDERS).map(([key, [name]]) => [key, name]), gallery.order, change("order")),
      DATA.labels.names.length ? select("Label", [["", "all"], ...labels], gallery.label, change("label")) : null,
      DATA.labels.names.length ? el("label", {}, "Purity at most ", el("input", { type: "range", min: 10, max: 100, step: 5,
        value: gallery.purity, input: (event) => {
          limit.textContent = `${event.target.value} %`;
          change("purity")(Number(event.target.value));
        } }), limit) : null,
      csvButton(`clusters-${modelId(model)}`, FACT_HEADINGS, () => chosen().map((c) => factRow(model, c)))),
    status, cards,
  ];
}

const FACT_HEADINGS = ["cluster", "label", "size", "held-out size", "purity", "mean radius", "largest radius", "silhouette", "nearest cluster"];

function factRow(model, c) {
  return [c, labelName(model.label[c]), model.size[c], model.size_holdout[c], model.purity[c], model.radius_mean[c],
    model.radius_max[c], model.silhouette[c], model.near[c][0] ?? null];
}

function card(model, c) {
  const purity = model.purity[c];
  const bar = purity === null ? null : el("span", { class: "bar", "aria-hidden": "true" }, fillBar(purity));
  return clusterLink(model, c,
    el("span", { class: "card" }, centre(model, c, 72),
      el("strong", {}, labelName(model.label[c])),
      el("span", { class: "soft" }, `#${c} · ${model.size[c].toLocaleString("en")}`),
      bar, purity === null ? null : el("span", { class: "soft" }, percent(purity))));
}

function fillBar(fraction) {
  const part = el("span");
  part.style.width = `${100 * fraction}%`;
  return part;
}

function cluster(model, c) {
  const label = model.label[c];
  const step = (by) => clusterLink(model, (c + by + model.k) % model.k, by < 0 ? "← previous" : "next →");
  const mix = model.mix[c], total = mix.reduce((sum, [, n]) => sum + n, 0);
  return [
    el("nav", { class: "steps", "aria-label": "clusters" }, step(-1),
      el("a", { href: `#clusters/${modelId(model)}` }, `all clusters of ${modelName(model)}`), step(1)),
    el("h2", {}, `Cluster ${c}: ${labelName(label)}`),
    el("div", { class: "side" }, centre(model, c, 168),
      facts([["fitted items", shown(model.size[c])], ["held-out items", shown(model.size_holdout[c])],
        ...(model.purity[c] === null ? [] : [["purity", percent(model.purity[c])]]),
        ["mean radius", shown(model.radius_mean[c])], ["largest radius", shown(model.radius_max[c])],
        ...(model.silhouette[c] === null ? [] : [["silhouette", shown(model.silhouette[c])]])])),
    el("h3", {}, "Nearest to the centre"), itemStrip(model.nearest[c], label, 72),
    el("h3", {}, "Farthest from the centre"), itemStrip(model.farthest[c], label, 72),
    el("h3", {}, "Random sample"), itemStrip(model.sample[c], label, 72),
    el("h3", {}, "Nearest clusters"), el("div", { class: "cards" }, model.near[c].map((other) => card(model, other))),
    mix.length ? table(`labels-of-cluster-${c}`, [
      { heading: "label", value: ([index]) => labelName(index) },
      { heading: "items", number: true, value: ([, n]) => n },
      { heading: "fraction", number: true, value: ([, n]) => n / total, cell: ([, n]) => percent(n / total) },
    ], mix, { caption: "Labels of its items, fitted and held-out" }) : null,
  ];
}

// ---- confusion

const NAMED = 40, NUMBERED = 20; // maximum number of labels for which names and numbers are drawn

function confusion(model) {
  const name = `confusion-${modelId(model)}`, n = DATA.labels.names.length;
  const rows = new Map();
  for (const [label, , items] of model.confusion) rows.set(label, (rows.get(label) ?? 0) + items);
  const predicted = (index) => (index < 0 ? "no label" : DATA.labels.names[index]);
  const cells = model.confusion.map(([label, guess, items]) => ({ label, guess, items, fraction: items / rows.get(label) }));
  const mistakes = cells.filter((cell) => cell.label !== cell.guess).sort((a, b) => b.items - a.items);
  const link = (cell) => `#cell/${modelId(model)}/${cell.label}/${cell.guess}`;
  const list = table(`${name}-mistakes`, [
    { heading: "label", value: (cell) => labelName(cell.label), cell: (cell) => el("a", { href: link(cell) }, labelName(cell.label)) },
    { heading: "label of the cluster", value: (cell) => predicted(cell.guess) },
    { heading: "items", number: true, value: (cell) => cell.items },
    { heading: "fraction of the label", number: true, value: (cell) => cell.fraction, cell: (cell) => percent(cell.fraction) },
  ], mistakes, { filter: true, caption: "Misclassified items, most frequent first" });
  return [el("h2", {}, `Confusion of ${modelName(model)}`),
    el("p", { class: "soft" }, "Number of items by their label and by the label of their cluster, fitted and held-out. Click a cell, or a link in the table, to see its clusters and images."),
    confusionChart(name, cells, n, predicted, link), list];
}

function confusionChart(name, cells, n, predicted, link) {
  const factors = DATA.labels.names.map(plain);
  const across = cells.some((cell) => cell.guess < 0) ? [...factors, "no label"] : factors;
  const made = plot({ x_range: across, y_range: [...factors].reverse(), height: Math.min(760, 120 + 34 * n), tools: "tap,hover",
    x_axis_label: "label of the cluster", y_axis_label: "label", x_axis_location: "above" });
  const [low, high] = [ink("heat-low"), ink("heat-high")];
  const colours = cells.map((cell) => blend(low, high, Math.sqrt(cell.fraction)));
  const source = new Bokeh.ColumnDataSource({ data: {
    x: cells.map((cell) => plain(predicted(cell.guess))), y: cells.map((cell) => factors[cell.label]),
    items: cells.map((cell) => cell.items), fraction: cells.map((cell) => percent(cell.fraction)), colour: colours,
    text: cells.map((cell) => cell.items.toLocaleString("en")), ink: cells.map((cell) => ink(cell.fraction > 0.3 ? "heat-on-high" : "text")),
  } });
  made.rect({ x: { field: "x" }, y: { field: "y" }, width: 0.96, height: 0.96, source, fill_color: { field: "colour" },
    line_color: null, nonselection_fill_alpha: 1 });
  if (n <= NUMBERED) {
    made.text({ x: { field: "x" }, y: { field: "y" }, text: { field: "text" }, source, text_align: "center",
      text_baseline: "middle", text_font_size: n > 12 ? "9px" : "12px", text_color: { field: "ink" }, nonselection_text_alpha: 1 });
  }
  for (const axis of [...made.above, ...made.left]) {
    axis.axis_line_color = axis.major_tick_line_color = null;
    if (n > NAMED) axis.major_label_text_font_size = "0px";
    else if (axis === made.above[0] && n > 12) axis.major_label_orientation = "vertical";
  }
  for (const grid of made.center) if (grid instanceof Bokeh.Grid) grid.grid_line_color = null;
  hover(made, [["label", "@y"], ["cluster's label", "@x"], ["items", "@items"], ["fraction of the label", "@fraction"]]);
  onSelect(source, ([i]) => { location.hash = link(cells[i]); });
  return chart(name, "Confusion matrix", made, ["label", "label of the cluster", "items"],
    cells.map((cell) => [labelName(cell.label), predicted(cell.guess), cell.items]));
}

/** Interpolate between two colours "#rrggbb". */
function blend(a, b, fraction) {
  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const [from, to] = [channels(a), channels(b)];
  return `#${from.map((v, i) => Math.round(v + fraction * (to[i] - v)).toString(16).padStart(2, "0")).join("")}`;
}

function cell(model, label, guess) {
  const inCell = [...model.size.keys()].map((c) => [c, model.mix[c].find(([index]) => index === label)?.[1] ?? 0])
    .filter(([c, items]) => model.label[c] === guess && items).sort((a, b) => b[1] - a[1]);
  const items = inCell.reduce((sum, [, n]) => sum + n, 0);
  const tiles = model.cells[label * DATA.labels.names.length + guess] ?? [];
  return [
    el("nav", { class: "steps" }, el("a", { href: `#confusion/${modelId(model)}` }, `← confusion of ${modelName(model)}`)),
    el("h2", {}, `${labelName(label)} in clusters ${guess < 0 ? "without a label" : `labelled ${labelName(guess)}`}`),
    el("p", {}, `${items.toLocaleString("en")} items in ${inCell.length} ${inCell.length === 1 ? "cluster" : "clusters"}.`),
    el("h3", {}, "Items nearest to their centres"), itemStrip(tiles, null, 72),
    el("h3", {}, "Clusters"),
    table(`cell-${label}-${guess}`, [
      { heading: "cluster", number: true, value: ([c]) => c, cell: ([c]) => clusterLink(model, c, centre(model, c, 48), ` ${c}`) },
      { heading: `items labelled ${labelName(label)}`, number: true, value: ([, n]) => n },
      { heading: "fitted items in the cluster", number: true, value: ([c]) => model.size[c] },
      { heading: "purity", number: true, value: ([c]) => model.purity[c], cell: ([c]) => percent(model.purity[c]) },
    ], inCell, { caption: "Clusters in this cell" }),
  ];
}
