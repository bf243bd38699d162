"use strict";
// Everything that is shown is in the address after "#": what is looked at can be linked to, and "back" works.
const { columns, errors, notes, classes, keys, batchSize, sharp, distance } = GALLERY;
const PER_PAGE = 48, FILTERS = ["target", "adversarial", "label", "status", "sort"], NUMBERS = FILTERS.slice(0, 3);
const nExamples = columns.index.length, find = (id) => document.getElementById(id), form = find("filters");
const sections = { summary: find("summary"), examples: find("examples"), example: find("example") };
const nameOf = (number) => (number === null ? "none" : classes ? classes[number] : `class ${number}`);
const fileOf = (row) => columns.name[row] ?? `Example ${row}`;
const distanceOf = (row) => (columns.distance[row] === null ? null : distance.replace("distance", `distance ${columns.distance[row]}`));

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
function link(text, href, key) {
  const made = element("a", { href }, text);
  made.dataset.key = key;
  return made;
}
function readAddress() {
  const [view, query] = location.hash.slice(1).split("?");
  return { view: Object.hasOwn(sections, view) ? view : "summary", query: new URLSearchParams(query) };
}
function address(view, query, changes = {}) {
  const changed = new URLSearchParams(query);
  for (const [key, value] of Object.entries(changes)) value === "" ? changed.delete(key) : changed.set(key, value);
  return `#${view}?${changed}`;
}
const isKnown = (row) => columns.label[row] !== null && columns.prediction[row] !== null;
const STATUSES = {
  found: (row) => columns.found[row] === true,
  lost: (row) => columns.found[row] === false,
  right: (row) => isKnown(row) && columns.label[row] === columns.prediction[row],
  wrong: (row) => isKnown(row) && columns.label[row] !== columns.prediction[row],
  failed: (row) => row in errors,
};
let remembered = { key: null, rows: [] }; // turning a page asks for the same rows again
function chosen(query) {
  const key = FILTERS.map((name) => query.get(name) ?? "").join("|");
  if (remembered.key === key) return remembered.rows;
  const wanted = NUMBERS.filter((name) => query.get(name)).map((name) => [columns[name], Number(query.get(name))]);
  const status = Object.hasOwn(STATUSES, query.get("status")) ? STATUSES[query.get("status")] : () => true;
  const rows = columns.index.filter((row) => wanted.every(([column, number]) => column[row] === number) && status(row));
  const sort = query.get("sort") ?? "", column = ["distance", "margin"].includes(sort.replace("-", "")) && columns[sort.replace("-", "")], sign = sort.startsWith("-") ? -1 : 1;
  if (column) rows.sort((a, b) => (column[a] === null) - (column[b] === null) || sign * (column[a] - column[b]) || a - b);
  remembered = { key, rows };
  return rows;
}
function image(row) {
  if (!keys.length || row in errors) return element("span", { className: "blank" }, `Example ${row}`);
  const parts = [Math.floor(row / 1000), row].map((part, place) => String(part).padStart(place ? 9 : 4, "0"));
  const src = `pictures/${parts.join("/")}-${keys[Math.floor(row / batchSize)]}.webp`;
  return element("img", { src, alt: `${fileOf(row)} beside its map`, loading: "lazy", className: sharp ? "sharp" : "" });
}
function card(row, query) {
  const other = columns.adversarial[row] === null ? "" : ` | ${nameOf(columns.adversarial[row])}`;
  const number = distanceOf(row) ?? (columns.margin[row] === null ? "" : `margin ${columns.margin[row]}`);
  const title = row in errors ? "error" : nameOf(columns.target[row]) + other;
  const lines = [element("strong", {}, title), element("small", {}, fileOf(row)), element("small", {}, number)];
  const made = element("a", { className: "card", href: address("example", query, { row }) }, image(row), ...lines);
  made.dataset.row = row;
  return made;
}
function showExamples(query) {
  const rows = chosen(query), nPages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
  const page = Math.min(Math.max(1, Number(query.get("page")) || 1), nPages), to = (number) => address("examples", query, { page: number });
  for (const name of FILTERS) form.elements[name].value = query.get(name) ?? "";
  find("count").textContent = `${rows.length.toLocaleString("en")} of ${nExamples.toLocaleString("en")} examples, page ${page} of ${nPages}`;
  find("grid").replaceChildren(...rows.slice((page - 1) * PER_PAGE, page * PER_PAGE).map((row) => card(row, query)));
  const before = page > 1 ? [link("First", to(1), ""), link("Previous", to(page - 1), "ArrowLeft")] : [];
  const after = page < nPages ? [link("Next", to(page + 1), "ArrowRight"), link("Last", to(nPages), "")] : [];
  find("pages").replaceChildren(...before, element("span", {}, `${page} / ${nPages}`), ...after);
}
function showExample(query) {
  const row = Math.min(Math.max(0, Math.trunc(Number(query.get("row"))) || 0), nExamples - 1);
  const rows = chosen(query), place = rows.indexOf(row), to = (number) => address("example", query, { row: number });
  const links = [link("Back to all", address("examples", query, { row: "", page: Math.floor(Math.max(place, 0) / PER_PAGE) + 1 }), "Escape")];
  if (place > 0) links.push(link("Previous", to(rows[place - 1]), "ArrowLeft"));
  if (place >= 0 && place + 1 < rows.length) links.push(link("Next", to(rows[place + 1]), "ArrowRight"));
  const of = (name) => columns[name][row] ?? "none";
  const facts = Object.entries({
    File: columns.name[row], Label: nameOf(columns.label[row]), Predicted: nameOf(columns.prediction[row]),
    Explained: nameOf(columns.target[row]), "Other side": columns.found[row] === false ? "not found" : nameOf(columns.adversarial[row]),
    Distance: distanceOf(row) ?? "none", Margin: of("margin"), "Model evaluations": of("evaluations"),
    "Completeness gap": of("completeness_gap"), Note: notes[row], Error: errors[row],
  }).filter(([, value]) => value !== undefined && value !== null);
  const caption = element("figcaption", {}, element("span", {}, "example"), element("span", {}, "map"));
  const list = element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  const figure = element("figure", {}, image(row), ...(keys.length ? [caption] : []));
  const heading = element("h2", { tabIndex: -1 }, `Example ${row}`);
  sections.example.replaceChildren(element("nav", { ariaLabel: "Examples" }, ...links), heading, element("div", { className: "beside" }, figure, list));
  heading.focus({ preventScroll: true });
}
let last = null;
function show() {
  const { view, query } = readAddress();
  for (const [id, section] of Object.entries(sections)) section.hidden = id !== view;
  for (const each of document.querySelectorAll("header a")) {
    each.toggleAttribute("aria-current", (each.dataset.view === "summary") === (view === "summary"));
  }
  if (view === "examples") showExamples(query);
  if (view === "example") showExample(query);
  if (view === "examples" && last?.view === "example") find("grid").querySelector(`[data-row="${Number(last.query.get("row"))}"]`)?.focus();
  else if (last && last.view !== view) window.scrollTo(0, 0);
  last = { view, query };
}
function go(to) {
  history.pushState(null, "", to);
  show();
}
form.addEventListener("change", () => go(address("examples", "", Object.fromEntries(FILTERS.map((name) => [name, form.elements[name].value])))));
form.addEventListener("reset", (event) => (event.preventDefault(), go("#examples")));
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("select")) return;
  const to = sections[readAddress().view].querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (to && event.key) (event.preventDefault(), go(to.getAttribute("href")));
});
for (const name of NUMBERS) {
  const numbers = [...new Set(columns[name])].filter((number) => number !== null).sort((a, b) => a - b);
  const options = numbers.map((number) => element("option", { value: number }, nameOf(number)));
  form.elements[name].replaceChildren(element("option", { value: "" }, "any"), ...options);
  form.elements[name].closest("label").hidden = numbers.length === 0;
}
for (const strip of document.querySelectorAll("[data-rows]")) {
  const rows = strip.dataset.rows.split(" ").filter(Boolean).map(Number);
  strip.replaceChildren(...rows.map((row) => card(row, strip.dataset.query)));
}
window.addEventListener("popstate", show); // links, "back" and "forward"
show();
