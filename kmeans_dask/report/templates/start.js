"use strict";
// The URL fragment selects the view: #overview, #clusters/MODEL, #cluster/MODEL/17, #cell/MODEL/3/5 and so on.

const has = (list) => Array.isArray(list) && list.length > 0;
const hasModels = has(DATA.models);

/** Name -> [title in the navigation, is available, belongs to one model, function that returns its elements]. */
const VIEWS = {
  overview: ["Overview", true, false, () => overview()],
  clusters: ["Clusters", hasModels, true, clusters],
  cluster: [null, hasModels, true, (model, c) => cluster(model, Number(c))],
  confusion: ["Confusion", hasModels && has(DATA.labels.names), true, confusion],
  cell: [null, hasModels, true, (model, label, guess) => cell(model, Number(label), Number(guess))],
  map: ["Map", hasModels && DATA.map !== null, true, map],
  ...Object.fromEntries(Object.entries(LISTS).map(([name, [title]]) =>
    [name, [title, name in DATA.lists, true, (model) => list(model, name)]])),
  colours: ["Quantized", DATA.colours !== null, false, () => colours()],
  failed: ["Failed", true, false, () => failed()],
};

/** Subordinate view -> the view that the navigation highlights for it. */
const PARENTS = { cluster: "clusters", cell: "confusion" };

/** The view that the URL asks for, or the overview if there is no such view. */
function requested() {
  const [view, id, ...rest] = location.hash.slice(1).split("/");
  if (!VIEWS[view]?.[1]) return { view: "overview", model: current, rest: [] };
  const model = DATA.models.find((other) => modelId(other) === id) ?? current;
  const [first] = rest;
  const missing = view === "cluster" && !(Number(first) >= 0 && Number(first) < model.k && Number.isInteger(Number(first)));
  return missing ? { view: "clusters", model, rest: [] } : { view, model, rest };
}

let current = DATA.models.find(({ algorithm, k }) => DATA.choice.some((choice) => choice.algorithm === algorithm && choice.k === k)) ??
  DATA.models.reduce((largest, model) => (largest === null || model.k > largest.k ? model : largest), null);

function render() {
  const { view, model, rest } = requested();
  current = model;
  const [, , ofModel, make] = VIEWS[view];
  const main = document.getElementById("main");
  document.documentElement.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
  main.replaceChildren(...make(...(ofModel ? [model, ...rest] : [])).filter(Boolean));
  document.title = `${main.querySelector("h2").textContent} – ${DATA.title}`;
  for (const link of document.querySelectorAll("#nav a")) {
    const here = link.dataset.view === (PARENTS[view] ?? view);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (VIEWS[link.dataset.view][2]) link.href = `#${link.dataset.view}/${modelId(model)}`;
  }
  const box = document.getElementById("model");
  box.hidden = !ofModel;
  if (model) box.querySelector("select").value = modelId(model);
  drawAll();
}

function start() {
  const links = Object.entries(VIEWS).filter(([, [title, available]]) => title && available)
    .map(([name, [title]]) => el("li", {}, el("a", { href: `#${name}`, "data-view": name }, title)));
  document.getElementById("nav").append(el("ul", {}, links));
  const switchModel = (id) => { location.hash = `#${PARENTS[requested().view] ?? requested().view}/${id}`; };
  const options = DATA.models.map((model) => [modelId(model), modelName(model)]);
  document.getElementById("model").append(select("Model", options, "", switchModel));
  addEventListener("hashchange", () => {
    document.getElementById("item").close();
    render();
    document.getElementById("main").focus({ preventScroll: true });
    scrollTo(0, 0);
  });
  document.getElementById("skip").addEventListener("click", () => document.getElementById("main").focus());
  addEventListener("keydown", stepThroughClusters);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
  render();
}

/** The left and right arrow keys step through the clusters, unless a field or the map has the focus. */
function stepThroughClusters(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], { view, model, rest } = requested();
  const busy = event.target.closest("input, select, dialog, .chart, .scroll") || event.altKey || event.ctrlKey || event.metaKey;
  if (step && view === "cluster" && !busy) location.hash = `#cluster/${modelId(model)}/${(Number(rest[0]) + step + model.k) % model.k}`;
}

document.addEventListener("DOMContentLoaded", start);
