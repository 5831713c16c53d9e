"use strict";
// The address after # says what is shown: #overview, #clusters/MODEL, #cluster/MODEL/17, #cell/MODEL/3/5 and so on.

const has = (list) => Array.isArray(list) && list.length > 0;
const ofModels = has(DATA.models);

/** Name -> [title, whether there is such a view, whether it is of one model, function that makes its elements]. */
const VIEWS = {
  overview: ["Overview", true, false, () => overview()],
  clusters: ["Clusters", ofModels, true, clusters],
  cluster: [null, ofModels, true, (model, c) => cluster(model, Number(c))],
  confusion: ["Confusion", ofModels && has(DATA.labels.names), true, confusion],
  cell: [null, ofModels, true, (model, label, guess) => cell(model, Number(label), Number(guess))],
  map: ["Map", ofModels && DATA.map !== null, true, map],
  ...Object.fromEntries(Object.entries(LISTS).map(([name, [title]]) =>
    [name, [title, name in DATA.lists, true, (model) => list(model, name)]])),
  colours: ["Quantized", DATA.colours !== null, false, () => colours()],
  failed: ["Failed", true, false, () => failed()],
};

/** Views below another one, which the navigation shows instead. */
const ABOVE = { cluster: "clusters", cell: "confusion" };

/** What the address asks for, or the overview where that is not there. */
function asked() {
  const [view, id, ...rest] = location.hash.slice(1).split("/");
  if (!VIEWS[view]?.[1]) return { view: "overview", model: current, rest: [] };
  const model = DATA.models.find((other) => modelId(other) === id) ?? current;
  const [first] = rest;
  const missing = view === "cluster" && !(Number(first) >= 0 && Number(first) < model.k && Number.isInteger(Number(first)));
  return missing ? { view: "clusters", model, rest: [] } : { view, model, rest };
}

let current = DATA.models.find(({ algorithm, k }) => DATA.choice.some((made) => made.algorithm === algorithm && made.k === k)) ??
  DATA.models.reduce((most, model) => (most === null || model.k > most.k ? model : most), null);

function render() {
  const { view, model, rest } = asked();
  current = model;
  const [title, , ofModel, make] = VIEWS[view];
  const main = document.getElementById("main");
  document.documentElement.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
  main.replaceChildren(...make(...(ofModel ? [model, ...rest] : [])).filter(Boolean));
  document.title = `${main.querySelector("h2").textContent} – ${DATA.title}`;
  for (const link of document.querySelectorAll("#nav a")) {
    const here = link.dataset.view === (ABOVE[view] ?? view);
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
  const links = Object.entries(VIEWS).filter(([, [title, there]]) => title && there)
    .map(([name, [title]]) => el("li", {}, el("a", { href: `#${name}`, "data-view": name }, title)));
  document.getElementById("nav").append(el("ul", {}, links));
  const another = (id) => { location.hash = `#${ABOVE[asked().view] ?? asked().view}/${id}`; };
  const options = DATA.models.map((model) => [modelId(model), modelName(model)]);
  document.getElementById("model").append(select("Model", options, "", another));
  addEventListener("hashchange", () => {
    document.getElementById("item").close();
    render();
    document.getElementById("main").focus({ preventScroll: true });
    scrollTo(0, 0);
  });
  document.getElementById("skip").addEventListener("click", () => document.getElementById("main").focus());
  addEventListener("keydown", turn);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
  render();
}

/** Left and right turn the pages of the clusters, unless a field or the map has the focus. */
function turn(event) {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], { view, model, rest } = asked();
  const busy = event.target.closest("input, select, dialog, .chart, .scroll") || event.altKey || event.ctrlKey || event.metaKey;
  if (by && view === "cluster" && !busy) location.hash = `#cluster/${modelId(model)}/${(Number(rest[0]) + by + model.k) % model.k}`;
}

document.addEventListener("DOMContentLoaded", start);
