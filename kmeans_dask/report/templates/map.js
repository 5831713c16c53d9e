"use strict";
// The map: a sample of the items and the centres of a model in a plane, with pan and zoom.

const mapState = { label: "", images: true };

function map(model) {
  const { x, y, label, tile: tiles, cluster: clustersOf, explained, of } = DATA.map;
  const m = DATA.models.indexOf(model), names = DATA.labels.names;
  const highlighted = mapState.label === "" ? null : Number(mapState.label);
  const colour = (index) => (index < 0 || (highlighted !== null && index !== highlighted) ? ink("faint") : COLOURS[index % COLOURS.length]);
  const marker = (index) => (index < 0 ? "dot" : MARKERS[Math.floor(index / COLOURS.length) % MARKERS.length]);
  // draw highlighted items last, on top of the others
  const order = x.map((_, i) => i).sort((a, b) => (label[a] === highlighted) - (label[b] === highlighted));
  const pick = (values) => order.map((i) => values[i]);
  const source = new Bokeh.ColumnDataSource({ data: {
    x: pick(x), y: pick(y), colour: order.map((i) => colour(label[i])), marker: order.map((i) => marker(label[i])),
    label: order.map((i) => plain(labelName(label[i]))), cluster: order.map((i) => clustersOf[m][i]),
  } });
  const [centreX, centreY] = DATA.map.centres[m];
  const made = plot({ height: 620, tools: "pan,wheel_zoom,tap,hover", x_range: padded([...x, ...centreX]), y_range: padded([...y, ...centreY]),
    x_axis_label: `first component, ${percent(explained[0])} of the centres' variance`,
    y_axis_label: `second component, ${percent(explained[1])}` });
  made.toolbar.active_scroll = made.toolbar.tools.find((tool) => tool instanceof Bokeh.WheelZoomTool);
  made.scatter({ x: { field: "x" }, y: { field: "y" }, marker: { field: "marker" }, source, size: 7, fill_alpha: 0.75,
    fill_color: { field: "colour" }, line_color: { field: "colour" }, line_alpha: 0.75, nonselection_fill_alpha: 0.75, nonselection_line_alpha: 0.75 });
  onSelect(source, ([i]) => {
    const item = order[i], c = clustersOf[m][item];
    if (tiles[item] >= 0) {
      showItem(tiles[item], [["cluster", clusterLink(model, c, `${c} (${labelName(model.label[c])})`)]]);
    }
  });
  const centres = new Bokeh.ColumnDataSource({ data: {
    x: centreX, y: centreY, cluster: [...centreX.keys()], label: model.label.map((index) => plain(labelName(index))),
  } });
  made.scatter({ x: { field: "x" }, y: { field: "y" }, marker: "square", source: centres, size: mapState.images ? 26 : 9,
    fill_color: ink("page"), line_color: ink("text"), nonselection_fill_alpha: 1, nonselection_line_alpha: 1 });
  onSelect(centres, ([c]) => { location.hash = `#cluster/${modelId(model)}/${c}`; });
  hover(made, [["label", "@label"], ["cluster", "@cluster"]]);

  const options = names.map((name, i) => [String(i), name]);
  const rows = order.map((i) => [labelName(label[i]), x[i], y[i], clustersOf[m][i]]);
  const shown = chart(`map-${modelId(model)}`, "Map", made, ["label", "x", "y", "cluster"], rows,
    { extra: zoomButtons(), ready: (_, place) => keys(made, place) });
  if (mapState.images) {
    centreUris(model).then((url) => {
      if (!shown.isConnected) return; // another view has been opened in the meantime
      made.image_url({ url, x: centreX, y: centreY, w: { value: 24, units: "screen" }, h: { value: 24, units: "screen" },
        anchor: "center" });
    });
  }
  return [
    el("h2", {}, `Map of ${modelName(model)}`),
    el("p", { class: "soft" }, `${x.length.toLocaleString("en")} items and the ${model.k} centres, in the plane of the first two principal components of the ` +
      `centres of ${of[0]}, K = ${of[1]}. Drag to pan, scroll to zoom; on the keyboard: arrow keys, + and −, 0 to reset. Click a point to open its item, a square to open its cluster.`),
    el("div", { class: "controls" },
      names.length ? select("Highlight", [["", "all labels"], ...options], mapState.label, (value) => { mapState.label = value; render(); }) : null,
      el("label", {}, el("input", { type: "checkbox", checked: mapState.images,
        change: (event) => { mapState.images = event.target.checked; render(); } }), " show centres as images")),
    legend(names),
    shown,
  ];
}

/** The range of some values plus a margin. */
function padded(values) {
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const margin = (high - low || 1) * 0.05;
  return [low - margin, high + margin];
}

function legend(names) {
  if (!names.length || names.length > COLOURS.length * 4) return null;
  const shapes = { circle: "●", square: "■", triangle: "▲", diamond: "◆" };
  return el("ul", { class: "legend" }, names.map((name, i) => {
    const sign = el("span", { "aria-hidden": "true" }, shapes[MARKERS[Math.floor(i / COLOURS.length)]]);
    sign.style.color = COLOURS[i % COLOURS.length];
    return el("li", {}, sign, " ", name);
  }));
}

/** The images of the centres as data URIs, for the chart. */
async function centreUris(model) {
  const canvases = [...model.size.keys()].map((c) => centre(model, c, 24));
  await Promise.all(sheets.values());
  return canvases.map((canvas) => canvas.toDataURL());
}

function zoom(made, factor, shiftX = 0, shiftY = 0) {
  for (const [range, shift] of [[made.x_range, shiftX], [made.y_range, shiftY]]) {
    const half = (range.end - range.start) / 2, middle = (range.end + range.start) / 2 + shift * half;
    range.setv({ start: middle - half * factor, end: middle + half * factor });
  }
}

function keys(made, place) {
  const home = [made.x_range, made.y_range].map((range) => ({ start: range.start, end: range.end }));
  const moves = {
    ArrowLeft: () => zoom(made, 1, -0.3), ArrowRight: () => zoom(made, 1, 0.3), ArrowUp: () => zoom(made, 1, 0, 0.3),
    ArrowDown: () => zoom(made, 1, 0, -0.3), "+": () => zoom(made, 0.7), "-": () => zoom(made, 1 / 0.7),
    0: () => [made.x_range, made.y_range].forEach((range, i) => range.setv(home[i])),
  };
  place.tabIndex = 0;
  place.setAttribute("role", "application");
  place.addEventListener("keydown", (event) => {
    const move = moves[event.key === "=" ? "+" : event.key];
    if (move && !event.ctrlKey && !event.metaKey) {
      move();
      event.preventDefault();
    }
  });
  for (const button of place.closest("figure").querySelectorAll("[data-key]")) {
    button.addEventListener("click", moves[button.dataset.key]);
  }
}

function zoomButtons() {
  return [["+", "zoom in"], ["-", "zoom out"], ["0", "reset"]].map(([key, name]) =>
    el("button", { type: "button", class: "small", "aria-label": name, title: name, "data-key": key }, key === "0" ? "⤢" : key === "-" ? "−" : key));
}
