"use strict";
// Tiles cut out of sheets, and the dialog that shows one item.

const sheets = new Map();

/** Decode an image embedded in the page, once, when it is first needed. */
function embeddedImage(id) {
  if (!sheets.has(id)) {
    const image = new Image();
    image.src = document.getElementById(id).textContent;
    sheets.set(id, image.decode().then(() => image));
  }
  return sheets.get(id);
}

/** A canvas with one tile of "items" or "centres". */
function tile(kind, number, label, size = 56) {
  const { width, height, pitch, across } = DATA.sheets[kind];
  const zoom = size / Math.max(width, height);
  const canvas = el("canvas", { width, height, role: "img", "aria-label": label, class: zoom > 1 ? "pixels" : null });
  canvas.style.width = `${Math.round(width * zoom)}px`;
  canvas.style.height = `${Math.round(height * zoom)}px`;
  const place = number % (across * across);
  const x = (place % across) * pitch[0], y = Math.floor(place / across) * pitch[1];
  embeddedImage(`${kind}-${Math.floor(number / (across * across))}`).then((sheet) =>
    canvas.getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height));
  return canvas;
}

const labelName = (index) => (index === null || index === undefined || index < 0 ? "no label" : DATA.labels.names[index]);

/** The image of a cluster: its centre, or the item nearest to it if centres cannot be shown as images. */
function centre(model, cluster, size) {
  const label = `${DATA.centres_are} of cluster ${cluster}, ${labelName(model.label[cluster])}`;
  return tile("centres", model.first_centre + cluster, label, size);
}

/** A button with the image of an item; its label is shown below if it is not the expected one. */
function itemButton(number, expected = null, size = 56) {
  const label = DATA.items.label[number];
  const odd = expected !== null && label >= 0 && label !== expected;
  const name = `${DATA.items.path[number]}, ${labelName(label)}`;
  return el("button", { type: "button", class: odd ? "tile odd" : "tile", title: name, click: () => showItem(number) },
    tile("items", number, name, size), odd ? el("span", {}, `≠ ${labelName(label)}`) : null);
}

function itemStrip(numbers, expected = null, size = 56) {
  if (!numbers.length) return el("p", { class: "soft" }, "No images.");
  return el("div", { class: "strip" }, numbers.map((number) => itemButton(number, expected, size)));
}

/** Open a dialog with one item; extra facts are [name, value] pairs. */
function showItem(number, extra = []) {
  const { row, path, label, held } = DATA.items;
  const dialog = document.getElementById("item");
  dialog.replaceChildren(
    el("form", { method: "dialog" }, el("button", { "aria-label": "close", autofocus: true }, "Close")),
    tile("items", number, path[number], 224),
    facts([["file", path[number]], ["label", labelName(label[number])], ["row", row[number].toLocaleString("en")],
      ["split", held[number] ? "held out" : "fitted"], ...extra]));
  dialog.showModal();
}
