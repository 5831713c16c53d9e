"use strict";
// Views of the whole run: overview, lists of items to review, failed items.

const METRICS = [
  // [panel heading, [[metrics column, series name, dashed], ...]]
  ["Inertia per sample", [["inertia_per_sample", "fitted", false], ["inertia_per_sample_holdout", "held out", true]]],
  ["Accuracy by majority label", [["accuracy_train", "fitted", false], ["accuracy_holdout", "held out", true]]],
  ["Accuracy, one cluster per label", [["accuracy_one_to_one", "fitted", false], ["accuracy_one_to_one_holdout", "held out", true]]],
  ["Homogeneity and completeness", [["homogeneity", "homogeneity", false], ["completeness", "completeness", true]]],
  ["V-measure and purity", [["v_measure", "V", false], ["purity", "purity", true]]],
  ["Adjusted Rand index and mutual information", [["adjusted_rand", "ARI", false], ["adjusted_mutual_information", "AMI", true]]],
  ["Explained variance", [["explained_variance", "", false]]],
  ["Silhouette (simplified)", [["silhouette", "", false]]],
  ["Davies-Bouldin (lower is better)", [["davies_bouldin", "", false]]],
  ["Calinski-Harabasz", [["calinski_harabasz", "", false]]],
  ["Stability under a second seed", [["stability", "", false]]],
  ["Fit time in seconds", [["seconds", "", false]]],
];

function overview() {
  const { metrics, labels, run } = DATA;
  return [
    el("h2", {}, "Overview"),
    facts(run.facts),
    metrics.length ? el("section", {}, el("h3", {}, "Models"), DATA.choice.map(choice), metricsTable(),
      el("p", { class: "soft" }, "Each cluster gets the majority label of its fitted items, and accuracy is the fraction of " +
        "items whose cluster has their label. It grows with K by construction, so compare models at equal K. Inertia is the " +
        `sum of squared distances to the nearest centre, ${DATA.scale}.`),
      el("div", { class: "panels" }, METRICS.map(metricCurves))) : null,
    el("section", {}, el("h3", {}, "Run"), el("div", { class: "panels" }, timings(),
      labels?.counts.length ? labelBars() : null),
      el("div", { class: "panels" }, run.shapes.length ? shapes() : null, run.changes.length ? changes() : null),
      el("details", {}, el("summary", {}, "Software and seed"), facts(run.versions)),
      el("details", {}, el("summary", {}, "Config"), el("pre", { tabindex: 0 }, run.config))),
  ];
}

const choice = ({ algorithm, k, reason }) => el("p", { class: "note" }, el("strong", {}, `Suggested for ${algorithm}: K = ${k}. `), reason);

function metricsTable() {
  const known = ["algorithm", "k", "accuracy_train", "accuracy_holdout", "homogeneity", "v_measure", "adjusted_rand", "silhouette",
    "explained_variance", "inertia_per_sample", "iterations", "seconds"].filter((key) => key in DATA.metrics[0]);
  const hidden = ["chosen"];
  const keys = [...known, ...Object.keys(DATA.metrics[0]).filter((key) => !known.includes(key) && !hidden.includes(key))];
  const columns = keys.filter((key) => DATA.metrics.some((row) => row[key] !== null && row[key] !== undefined)).map((key) => ({
    heading: key === "k" ? "K" : key.replaceAll("_", " "), number: key !== "algorithm",
    value: (row) => row[key] ?? null, decimals: key === "seconds" ? 2 : 4,
  }));
  const name = columns[1].value;
  columns[1].cell = (row) => el("a", { href: `#clusters/${row.algorithm}-${row.k}` }, String(name(row)));
  return table("metrics", columns, DATA.metrics, { caption: "Metrics of all models" });
}

function metricCurves([caption, parts]) {
  const algorithms = [...new Set(DATA.metrics.map((row) => row.algorithm))];
  const series = algorithms.flatMap((algorithm, group) => parts.map(([key, name, dashed]) => ({
    name: [algorithms.length > 1 ? algorithm : null, name].filter(Boolean).join(", ") || algorithm, group, dashed,
    points: DATA.metrics.filter((row) => row.algorithm === algorithm && typeof row[key] === "number").map((row) => [row.k, row[key]]),
  }))).filter((line) => line.points.length);
  const ks = new Set(DATA.metrics.map((row) => row.k));
  return ks.size > 1 && series.length ? curves(parts[0][0], caption, series, caption) : null;
}

function timings() {
  const { timings: stages } = DATA.run;
  return stages.length ? bars("stages", "Time per stage", stages.map(([name]) => name), stages.map(([, s]) => s), "seconds") : null;
}

const MAX_BARS = 30;

function labelBars() {
  const { names, counts } = { names: DATA.labels.names, counts: DATA.labels.counts };
  const order = counts.map((_, i) => i);
  if (counts.length <= MAX_BARS) return bars("labels", "Items per label", names, counts, "items");
  order.sort((a, b) => counts[b] - counts[a]);
  const first = order.slice(0, MAX_BARS);
  return el("div", {}, bars("labels", `Items per label: the ${MAX_BARS} most frequent`, first.map((i) => names[i]), first.map((i) => counts[i]), "items"),
    table("all-labels", [{ heading: "label", value: (i) => names[i] }, { heading: "items", number: true, value: (i) => counts[i] }],
      order, { filter: true, caption: "Items per label: all labels" }));
}

function shapes() {
  const columns = ["width × height in pixels", "mode", "items"].map((heading, i) =>
    ({ heading, number: i === 2, value: (row) => row[i] }));
  return table("shapes", columns, DATA.run.shapes, { caption: "Sizes of the original images" });
}

function changes() {
  const columns = ["conversion", "method", "items"].map((heading, i) =>
    ({ heading, number: i === 2, value: (row) => row[i] }));
  return table("changes", columns, DATA.run.changes, { caption: "Conversions apart from resizing" });
}

// ---- lists of items

const LISTS = {
  label_issues: ["Label issues", "Items whose label disagrees with the majority of their cluster: the label may be wrong."],
  outliers: ["Outliers", "Items far from the centre of their cluster."],
  duplicates: ["Duplicates", "Items with the same or nearly the same pixels as another item."],
};

function list(model, name) {
  const [title, description] = LISTS[name], columns = DATA.lists[name];
  const n = columns.row.length;
  let rows = Array.from({ length: n }, (_, i) => i);
  const ofModel = "algorithm" in columns;
  if (ofModel && model) rows = rows.filter((i) => columns.algorithm[i] === model.algorithm && columns.k[i] === model.k);
  const image = (tiles) => (i) => (columns[tiles][i] < 0 ? "–" : itemButton(columns[tiles][i], null, 48));
  const shownColumns = [{ heading: "item", value: (i) => columns.row[i], cell: image("tile"), number: true }];
  if ("of_tile" in columns) shownColumns.push({ heading: "of", value: (i) => columns.of_row[i], cell: image("of_tile"), number: true });
  for (const key of Object.keys(columns)) {
    if (["row", "of_row", "tile", "of_tile", "algorithm", "k"].includes(key)) continue;
    const value = (i) => columns[key][i];
    const column = { heading: key.replaceAll("_", " "), value, number: columns[key].some((v) => typeof v === "number") };
    if (key === "cluster" && model) {
      column.cell = (i) => el("a", { href: `#cluster/${modelId(clusterModel(columns, i, model))}/${value(i)}` }, String(value(i)));
    }
    shownColumns.push(column);
  }
  const total = DATA.totals[name] ?? n;
  return [
    el("h2", {}, title),
    el("p", {}, description, ` Showing ${rows.length.toLocaleString("en")}${ofModel ? ` for ${modelName(model)}` : ""}, ` +
      `most certain first; ${name}.csv lists ${total.toLocaleString("en")}${ofModel ? " for all models" : ""}.`),
    rows.length ? table(name, shownColumns, rows, { filter: true, caption: title }) :
      el("p", { class: "note" }, `No ${title.toLowerCase()} found.`),
  ];
}

/** The model that a row's cluster refers to; lists without a model, such as duplicates, use the one with the largest K. */
function clusterModel(columns, i, model) {
  if ("algorithm" in columns) return model;
  return DATA.models.reduce((largest, other) => (other.k > largest.k ? other : largest));
}

function failed() {
  const { rows, count } = DATA.failed;
  const columns = ["path", "status", "error"].map((heading) => ({ heading, value: (row) => row[heading] }));
  return [
    el("h2", {}, "Failed items"),
    count === 0 ? el("p", {}, "All items were read.") :
      el("p", {}, `${count.toLocaleString("en")} items could not be read; items.csv lists all of them with the reason.` +
        (rows.length < count ? ` The first ${rows.length.toLocaleString("en")} are shown here.` : "")),
    count ? table("failed", columns, rows, { filter: true, caption: "Failed items" }) : null,
  ];
}
