"use strict";
// Shared by all views: elements whose text is always text, tables that sort and filter, downloads.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** Create an element. Functions become event listeners; strings become text, never markup. */
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

/** Format a number with separators and at most `decimals` decimals; a dash for missing values. */
function shown(value, decimals = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Math.abs(value) >= 1e7 && !Number.isInteger(value)) return value.toExponential(4);
  return value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) >= 1000 ? 1 : decimals });
}

const percent = (fraction) => (fraction === null || fraction === undefined ? "–" : `${(100 * fraction).toFixed(1)} %`);

function download(name, content, type) {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Rows as CSV (RFC 4180). Text that a spreadsheet would execute as a formula gets a leading apostrophe. */
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

/** A figure: caption and buttons, with the content below. */
function figure(caption, buttons, ...content) {
  const bar = el("figcaption", {}, el("span", {}, caption), el("span", { class: "buttons" }, buttons));
  return el("figure", {}, bar, ...content);
}

const INITIAL_ROWS = 25, LONG_TEXT = 30;
const PORTRAIT_COLUMNS = 12; // in print; tables with more columns get a landscape page

/**
 * A table that sorts by its headings. Columns: {heading, value(row) -> value to sort by and to save, cell(row) -> element
 * to show, number: bool}. With a filter, a search box matches the text of all values.
 */
function table(name, columns, rows, { filter = false, caption = name } = {}) {
  let order = null, needle = "", limit = INITIAL_ROWS;
  const body = el("tbody"), more = el("button", { type: "button", click: () => { limit *= 4; fill(); } });
  const status = el("span", { class: "soft", role: "status" });
  const heads = columns.map((column) => {
    const sort = () => {
      order = { column, down: order?.column === column ? !order.down : Boolean(column.number) };
      fill();
    };
    const button = el("button", { type: "button", click: sort }, column.heading);
    return el("th", { scope: "col", class: column.number ? "number" : null }, button);
  });
  const long = columns.map((column) => !column.number && rows.some((row) => String(column.value(row) ?? "").length > LONG_TEXT));
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
    more.textContent = `Show more (${found.length.toLocaleString("en")} rows)`;
    more.hidden = found.length <= limit;
    status.textContent = filter ? `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "";
  }
  const search = el("input", { type: "search", "aria-label": `search ${caption}`, placeholder: "Search",
    input: (event) => { needle = event.target.value.toLowerCase(); fill(); } });
  fill();
  const element = figure(caption,
    [...(filter ? [status, search] : []), csvButton(name, columns.map((c) => c.heading), () => chosen().map(values))],
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      el("table", {}, el("thead", {}, el("tr", {}, heads)), body)), more);
  element.classList.toggle("wide", columns.length > PORTRAIT_COLUMNS);
  return element;
}

/** Sort order: numbers by value, text naturally (2 before 10), missing values last. */
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

/** A list of names and values. */
function facts(pairs) {
  return el("dl", {}, pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}
