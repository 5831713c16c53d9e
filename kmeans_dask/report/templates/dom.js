"use strict";
// What all views use: elements whose text is only ever text, tables that sort and filter, downloads.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** Make an element. Attributes whose value is a function listen to events; strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A number with separators and so many decimals at most; a dash for what is missing. */
function shown(value, decimals = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Math.abs(value) >= 1e7 && !Number.isInteger(value)) return value.toExponential(4);
  return value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) >= 1000 ? 1 : decimals });
}

const percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)} %`);

function download(name, content, type) {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Rows as CSV (RFC 4180). A spreadsheet would run text that begins like a formula, so that gets an apostrophe. */
function csv(headings, rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [headings, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function csvButton(name, headings, rows) {
  const save = () => download(`${name}.csv`, csv(headings, typeof rows === "function" ? rows() : rows), "text/csv");
  return el("button", { type: "button", class: "small", "aria-label": `save ${name} as CSV`, click: save }, "CSV");
}

/** A figure with its caption and buttons, and below it what it shows. */
function figure(caption, buttons, ...content) {
  const bar = el("figcaption", {}, el("span", {}, caption), el("span", { class: "buttons" }, buttons));
  return el("figure", {}, bar, ...content);
}

const ROWS_AT_ONCE = 25, LONG = 30;
const COLUMNS_OF_A_PAGE = 12; // of numbers, in print; wider tables get a page turned on its side

/**
 * A table whose headings sort. Columns: {heading, value(row) -> what sorts and is saved, cell(row) -> what is shown,
 * number: bool}. With a filter, a box searches the text of all values.
 */
function table(name, columns, rows, { filter = false, caption = name } = {}) {
  let order = null, needle = "", limit = ROWS_AT_ONCE;
  const body = el("tbody"), more = el("button", { type: "button", click: () => { limit *= 4; fill(); } });
  const told = el("span", { class: "soft", role: "status" });
  const heads = columns.map((column) => {
    const sort = () => {
      order = { column, down: order?.column === column ? !order.down : Boolean(column.number) };
      fill();
    };
    const button = el("button", { type: "button", click: sort }, column.heading);
    return el("th", { scope: "col", class: column.number ? "number" : null }, button);
  });
  const long = columns.map((column) => !column.number && rows.some((row) => String(column.value(row) ?? "").length > LONG));
  const values = (row) => columns.map((column) => column.value(row));

  function chosen() {
    const found = rows.filter((row) => !needle || values(row).join("\n").toLowerCase().includes(needle));
    if (!order) return found;
    const sign = order.down ? -1 : 1, { value } = order.column;
    return found.sort((a, b) => sign * compare(value(a), value(b)));
  }
  function fill() {
    const found = chosen();
    body.replaceChildren(...found.slice(0, limit).map((row) => el("tr", {}, columns.map((column, i) =>
      el("td", { class: column.number ? "number" : long[i] ? "long" : null },
        column.cell ? column.cell(row) : shown(column.value(row), column.decimals))))));
    heads.forEach((head, i) => head.setAttribute("aria-sort",
      order?.column !== columns[i] ? "none" : order.down ? "descending" : "ascending"));
    more.textContent = `Show more of ${found.length.toLocaleString("en")}`;
    more.hidden = found.length <= limit;
    told.textContent = filter ? `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "";
  }
  const search = el("input", { type: "search", "aria-label": `search in ${caption}`, placeholder: "search",
    input: (event) => { needle = event.target.value.toLowerCase(); fill(); } });
  fill();
  const made = figure(caption,
    [...(filter ? [told, search] : []), csvButton(name, columns.map((c) => c.heading), () => chosen().map(values))],
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      el("table", {}, el("thead", {}, el("tr", {}, heads)), body)), more);
  made.classList.toggle("wide", columns.length > COLUMNS_OF_A_PAGE);
  return made;
}

/** Numbers by size, text as people count (2 before 10), what is missing last. */
function compare(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function select(label, options, value, change) {
  const box = el("select", { change: (event) => change(event.target.value) },
    options.map(([key, text]) => el("option", { value: key }, text)));
  box.value = value;
  return el("label", {}, label, " ", box);
}

/** Names and values. */
function facts(pairs) {
  return el("dl", {}, pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}
