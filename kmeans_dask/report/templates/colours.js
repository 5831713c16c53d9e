"use strict";
// View of the quantized images: errors, before and after, palettes.

const slider = { image: 0, k: null, at: 50 };

function colours() {
  const { ks, table: rows, histograms, images, worst, palettes } = DATA.colours;
  const columns = [["K", "k"], ["images", "images"], ["mean MSE", "mse"], ["mean PSNR, dB", "psnr"], ["bytes", "bytes"],
    ["mean MSE in OKLab (× 255)", "mse_oklab"]]
    .filter(([, key]) => rows.some((row) => row[key] !== null && row[key] !== undefined))
    .map(([heading, key]) => ({ heading, number: true, value: (row) => row[key] ?? null, decimals: 2 }));
  const open = (path, k) => {
    slider.image = images.findIndex((image) => image.path === path);
    slider.k = k;
    render();
    document.getElementById("compare").scrollIntoView();
  };
  return [
    el("h2", {}, "Quantized images"),
    table("colours", columns, rows, { caption: "Mean errors over all images" }),
    el("p", { class: "soft" }, "MSE is the squared RGB distance to the original (channels 0–255, summed), averaged over the pixels of an image."),
    images.length ? el("section", { id: "compare" }, el("h3", {}, "Before and after"), compareImages(images, ks)) : null,
    el("section", {}, el("h3", {}, "Distribution of the errors"), el("div", { class: "panels" },
      histograms.map((h) => histogram(`errors-k${h.k}`, `K = ${h.k}${h.exact ? `, ${h.exact.toLocaleString("en")} without error` : ""}; dashed: median`,
        h.edges, h.counts, h.median, "MSE")))),
    table("worst", [
      { heading: "K", number: true, value: (row) => row.k },
      { heading: "image", value: (row) => row.path, cell: (row) => (images.some((image) => image.path === row.path) ?
        el("button", { type: "button", class: "link", click: () => open(row.path, row.k) }, row.path) : row.path) },
      { heading: "MSE", number: true, value: (row) => row.mse, decimals: 2 },
      { heading: "PSNR, dB", number: true, value: (row) => row.psnr, decimals: 2 },
    ], worst, { filter: true, caption: "Images with the largest errors" }),
    palettes.length ? el("section", {}, el("h3", {}, "Shared palettes"), palettes.map(({ k, colours: hexColours }) => palette(`K = ${k}`, hexColours))) : null,
  ];
}

function compareImages(images, ks) {
  const image = images[Math.max(0, slider.image)] ?? images[0];
  const version = image.versions.find(({ k }) => k === slider.k) ?? image.versions[0];
  const choose = (change) => { Object.assign(slider, change); render(); };
  const before = el("img", { alt: `${image.path}, original` }), after = el("img", { alt: `${image.path}, K = ${version.k}` });
  for (const [img, index] of [[before, image.original], [after, version.image]]) {
    img.src = document.getElementById(`image-${index}`).textContent;
  }
  if (image.width < 240) [before, after].forEach((img) => img.classList.add("pixels"));
  const line = el("span", { class: "line", "aria-hidden": "true" });
  const stack = el("div", { class: "stack" }, after, before, line);
  stack.style.aspectRatio = `${image.width} / ${image.height}`;
  const move = (at) => {
    slider.at = at;
    before.style.clipPath = `inset(0 ${100 - at}% 0 0)`;
    line.style.left = `${at}%`;
  };
  move(slider.at);
  const range = el("input", { type: "range", min: 0, max: 100, value: slider.at, "aria-label": "original on the left, quantized on the right",
    input: (event) => move(Number(event.target.value)) });
  const drag = (event) => {
    if (event.type === "pointerdown") stack.setPointerCapture(event.pointerId);
    if (event.buttons !== 1) return;
    const { left, width } = stack.getBoundingClientRect();
    range.value = Math.max(0, Math.min(100, (100 * (event.clientX - left)) / width));
    move(Number(range.value));
  };
  stack.addEventListener("pointerdown", drag);
  stack.addEventListener("pointermove", drag);
  return el("div", {},
    el("div", { class: "controls" },
      select("Image", images.map(({ path }, i) => [String(i), path]), String(images.indexOf(image)), (i) => choose({ image: Number(i) })),
      el("fieldset", {}, el("legend", {}, "K"), ks.map((k) => el("label", {}, el("input", { type: "radio", name: "k", value: k,
        checked: k === version.k, disabled: !image.versions.some((other) => other.k === k), change: () => choose({ k }) }), ` ${k}`)))),
    el("div", { class: "compare" }, stack, range,
      el("p", { class: "ends" }, el("span", {}, "original"), el("span", {}, `K = ${version.k}: MSE ${shown(version.mse, 2)}` +
        `${version.psnr === null ? "" : `, PSNR ${shown(version.psnr, 2)} dB`}, ${version.bytes.toLocaleString("en")} bytes`))),
    version.palette.length ? palette(`Palette, K = ${version.k}`, version.palette) : null);
}

/** The colours of a palette as swatches. */
function palette(caption, hexColours) {
  const swatches = hexColours.map((colour) => {
    const swatch = el("span", { title: colour });
    swatch.style.background = colour;
    return swatch;
  });
  return figure(caption, [csvButton("palette", ["colour"], hexColours.map((colour) => [colour]))],
    el("div", { class: "palette", role: "img", "aria-label": hexColours.slice(0, 64).join(" ") }, swatches));
}
