"use strict";
// The views of the run as a whole: overview, items to look at, failed items.

const METRICS = [
  // heading of a panel, [column of the metrics, name, dashed], what is said of it
  ["Inertia per sample", [["inertia_per_sample", "fitted", false], ["inertia_per_sample_holdout", "held out", true]]],
  ["Accuracy by majority label", [["accuracy_train", "fitted", false], ["accuracy_holdout", "held out", true]]],
  ["Accuracy, one cluster a label", [["accuracy_one_to_one", "fitted", false], ["accuracy_one_to_one_holdout", "held out", true]]],
  ["Homogeneity and completeness", [["homogeneity", "homogeneity", false], ["completeness", "completeness", true]]],
  ["V-measure and purity", [["v_measure", "V", false], ["purity", "purity", true]]],
  ["Adjusted Rand index and mutual information", [["adjusted_rand", "ARI", false], ["adjusted_mutual_information", "AMI", true]]],
  ["Explained variance", [["explained_variance", "", false]]],
  ["Silhouette (simplified)", [["silhouette", "", false]]],
  ["Davies-Bouldin (lower is better)", [["davies_bouldin", "", false]]],
  ["Calinski-Harabasz", [["calinski_harabasz", "", false]]],
  ["Stability with a second seed", [["stability", "", false]]],
  ["Seconds of the fit", [["seconds", "", false]]],
];

function overview() {
  const { metrics, labels, run } = DATA;
  return [
    el("h2", {}, "Overview"),
    facts(run.facts),
    metrics.length ? el("section", {}, el("h3", {}, "Models"), DATA.choice.map(choice), metricsTable(),
      el("p", { class: "soft" }, "Labels are given to clusters by the majority of their fitted items, and accuracy is the " +
        "share of items whose cluster has their label: it grows with K by construction, so compare it at equal K. Inertia " +
        `is the sum of squared distances to the nearest centre, ${DATA.scale}.`),
      el("div", { class: "panels" }, METRICS.map(metricCurves))) : null,
    el("section", {}, el("h3", {}, "Run"), el("div", { class: "panels" }, timings(),
      labels?.counts.length ? labelBars() : null), 
      el("div", { class: "panels" }, run.shapes.length ? shapes() : null, run.changes.length ? changes() : null),
      el("details", {}, el("summary", {}, "Software and seed"), facts(run.versions)),
      el("details", {}, el("summary", {}, "Config"), el("pre", { tabindex: 0 }, run.config))),
  ];
}

const choice = (made) => el("p", { class: "note" }, el("strong", {}, `K = ${made.k} is proposed for ${made.algorithm}. `), made.reason);

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
  return table("metrics", columns, DATA.metrics, { caption: "Figures of every model" });
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
  return stages.length ? bars("stages", "Seconds of each stage", stages.map(([name]) => name), stages.map(([, s]) => s), "seconds") : null;
}

const BARS = 30;

function labelBars() {
  const { names, counts } = { names: DATA.labels.names, counts: DATA.labels.counts };
  const order = counts.map((_, i) => i);
  if (counts.length <= BARS) return bars("labels", "Items of each label", names, counts, "items");
  order.sort((a, b) => counts[b] - counts[a]);
  const first = order.slice(0, BARS);
  return el("div", {}, bars("labels", `Items of the ${BARS} most frequent labels`, first.map((i) => names[i]), first.map((i) => counts[i]), "items"),
    table("all-labels", [{ heading: "label", value: (i) => names[i] }, { heading: "items", number: true, value: (i) => counts[i] }],
      order, { filter: true, caption: "Items of all labels" }));
}

function shapes() {
  const columns = ["width × height, pixels", "mode", "items"].map((heading, i) =>
    ({ heading, number: i === 2, value: (row) => row[i] }));
  return table("shapes", columns, DATA.run.shapes, { caption: "Original images" });
}

function changes() {
  const columns = ["done to items beside resizing", "how", "items"].map((heading, i) =>
    ({ heading, number: i === 2, value: (row) => row[i] }));
  return table("changes", columns, DATA.run.changes, { caption: "Changes to the images" });
}

// ---- lists of items

const LISTS = {
  label_issues: ["Suspects", "Items whose label disagrees with a cluster that is nearly pure: perhaps they are labelled wrongly."],
  outliers: ["Outliers", "Items far from the centre of their cluster."],
  duplicates: ["Duplicates", "Items with the same pixels as another one, or nearly the same."],
};

function list(model, name) {
  const [title, words] = LISTS[name], columns = DATA.lists[name];
  const n = columns.row.length;
  let rows = Array.from({ length: n }, (_, i) => i);
  const ofModel = "algorithm" in columns;
  if (ofModel && model) rows = rows.filter((i) => columns.algorithm[i] === model.algorithm && columns.k[i] === model.k);
  const pictured = (tiles) => (i) => (columns[tiles][i] < 0 ? "–" : itemButton(columns[tiles][i], null, 48));
  const made = [{ heading: "item", value: (i) => columns.row[i], cell: pictured("tile"), number: true }];
  if ("of_tile" in columns) made.push({ heading: "of", value: (i) => columns.of_row[i], cell: pictured("of_tile"), number: true });
  for (const key of Object.keys(columns)) {
    if (["row", "of_row", "tile", "of_tile", "algorithm", "k"].includes(key)) continue;
    const value = (i) => columns[key][i];
    const column = { heading: key.replaceAll("_", " "), value, number: columns[key].some((v) => typeof v === "number") };
    if (key === "cluster" && model) {
      column.cell = (i) => el("a", { href: `#cluster/${modelId(clusterModel(columns, i, model))}/${value(i)}` }, String(value(i)));
    }
    made.push(column);
  }
  const total = DATA.totals[name] ?? n;
  return [
    el("h2", {}, title),
    el("p", {}, words, ` ${total.toLocaleString("en")} in ${name}.csv${ofModel ? ", of all models" : ""}; ` +
      `${rows.length.toLocaleString("en")} ${ofModel ? `of ${modelName(model)} ` : ""}are shown, the most certain first.`),
    rows.length ? table(name, made, rows, { filter: true, caption: title }) : el("p", { class: "note" }, `No ${name} were found.`),
  ];
}

/** Lists of one model only, such as duplicates, speak of the model with the most clusters. */
function clusterModel(columns, i, model) {
  if ("algorithm" in columns) return model;
  return DATA.models.reduce((most, other) => (other.k > most.k ? other : most));
}

function failed() {
  const { rows, count } = DATA.failed;
  const columns = ["path", "status", "error"].map((heading) => ({ heading, value: (row) => row[heading] }));
  return [
    el("h2", {}, "Failed items"),
    count === 0 ? el("p", {}, "Every item was read.") :
      el("p", {}, `${count.toLocaleString("en")} items could not be read; all are listed in items.csv with the reason.` +
        (rows.length < count ? ` The first ${rows.length} are shown here.` : "")),
    count ? table("failed", columns, rows, { filter: true, caption: "Failed items" }) : null,
  ];
}
