"use strict";
// Small pictures out of sheets, and the window that shows one item.

const sheets = new Map();

/** Decode a picture that lies in the page as text; each once, when it is first needed. */
function picture(id) {
  if (!sheets.has(id)) {
    const image = new Image();
    image.src = document.getElementById(id).textContent;
    sheets.set(id, image.decode().then(() => image));
  }
  return sheets.get(id);
}

/** A canvas with one tile of a strip, "items" or "centres". */
function tile(strip, number, label, size = 56) {
  const { width, height, pitch, across } = DATA.sheets[strip];
  const zoom = size / Math.max(width, height);
  const canvas = el("canvas", { width, height, role: "img", "aria-label": label, class: zoom > 1 ? "pixels" : null });
  canvas.style.width = `${Math.round(width * zoom)}px`;
  canvas.style.height = `${Math.round(height * zoom)}px`;
  const place = number % (across * across);
  const x = (place % across) * pitch[0], y = Math.floor(place / across) * pitch[1];
  picture(`${strip}-${Math.floor(number / (across * across))}`).then((sheet) =>
    canvas.getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height));
  return canvas;
}

const labelName = (index) => (index === null || index === undefined || index < 0 ? "no label" : DATA.labels.names[index]);

/** The picture of a cluster: its centre, or, where centres are no pictures, the item nearest to it. */
function centre(model, cluster, size) {
  const label = `${DATA.centres_are} of cluster ${cluster}, ${labelName(model.label[cluster])}`;
  return tile("centres", model.first_centre + cluster, label, size);
}

/** A button with an item's picture; its label is written below if it is not the expected one. */
function itemButton(number, expected = null, size = 56) {
  const label = DATA.items.label[number];
  const odd = expected !== null && label >= 0 && label !== expected;
  const name = `${DATA.items.path[number]}, ${labelName(label)}`;
  return el("button", { type: "button", class: odd ? "tile odd" : "tile", title: name, click: () => showItem(number) },
    tile("items", number, name, size), odd ? el("span", {}, `≠ ${labelName(label)}`) : null);
}

function itemStrip(numbers, expected = null, size = 56) {
  if (!numbers.length) return el("p", { class: "soft" }, "No pictures.");
  return el("div", { class: "strip" }, numbers.map((number) => itemButton(number, expected, size)));
}

/** A window with one item; extra facts are [name, value] pairs. */
function showItem(number, extra = []) {
  const { row, path, label, held } = DATA.items;
  const dialog = document.getElementById("item");
  dialog.replaceChildren(
    el("form", { method: "dialog" }, el("button", { "aria-label": "close", autofocus: true }, "Close")),
    tile("items", number, path[number], 224),
    facts([["file", path[number]], ["label", labelName(label[number])], ["row", row[number].toLocaleString("en")],
      ["part", held[number] ? "held out" : "fitted"], ...extra]));
  dialog.showModal();
}
