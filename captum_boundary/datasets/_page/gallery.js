"use strict";

// Everything that is shown is in the address after "#": what is looked at can be linked to, and "back" works.
const { columns, errors, classes, pictures, sharp } = window.GALLERY;
const PER_PAGE = 48;
const FILTERS = ["target", "adversarial", "label", "status", "sort"];
const nExamples = columns.index.length;
const sections = Object.fromEntries(["summary", "examples", "example"].map((id) => [id, document.getElementById(id)]));
const form = document.getElementById("filters");

const nameOf = (number) => (number === null ? "none" : classes ? classes[number] : `class ${number}`);
const shown = (number) => (number === null ? "none" : Number(number.toPrecision(4)).toString());
const pictureOf = (row) => {
  const index = columns.index[row];
  return `pictures/${String(Math.floor(index / 1000)).padStart(4, "0")}/${String(index).padStart(9, "0")}.webp`;
};

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function readAddress() {
  const [view, query] = location.hash.slice(1).split("?");
  return { view: view in sections ? view : "summary", query: new URLSearchParams(query) };
}

function address(view, query, changes = {}) {
  const changed = new URLSearchParams(query);
  for (const [key, value] of Object.entries(changes)) {
    if (value === "" || value === null) changed.delete(key);
    else changed.set(key, value);
  }
  const text = changed.toString();
  return `#${view}${text ? `?${text}` : ""}`;
}

const STATUSES = {
  found: (row) => columns.found[row] === true,
  lost: (row) => columns.found[row] === false,
  right: (row) => columns.label[row] !== null && columns.label[row] === columns.prediction[row],
  wrong: (row) =>
    columns.label[row] !== null && columns.prediction[row] !== null && columns.label[row] !== columns.prediction[row],
  failed: (row) => columns.index[row] in errors,
};

// Rows that pass the filters, in order. Turning a page asks for the same ones again.
let remembered = { key: null, rows: [] };
function chosen(query) {
  const key = FILTERS.map((name) => query.get(name) ?? "").join("|");
  if (remembered.key === key) return remembered.rows;
  const tests = ["target", "adversarial", "label"]
    .filter((name) => query.get(name))
    .map((name) => [columns[name], Number(query.get(name))]);
  const status = STATUSES[query.get("status")];
  const rows = [];
  for (let row = 0; row < nExamples; row += 1) {
    if (tests.every(([column, wanted]) => column[row] === wanted) && (!status || status(row))) rows.push(row);
  }
  const sort = query.get("sort");
  if (sort) {
    const column = columns[sort.replace("-", "")] ?? columns.index;
    const sign = sort.startsWith("-") ? -1 : 1;
    const known = rows.filter((row) => column[row] !== null);
    known.sort((first, second) => sign * (column[first] - column[second]) || first - second);
    remembered = { key, rows: known.concat(rows.filter((row) => column[row] === null)) };
  } else {
    remembered = { key, rows };
  }
  return remembered.rows;
}

function image(row) {
  if (!pictures) return element("span", { className: "blank" }, `example ${columns.index[row]}`);
  return element("img", {
    src: pictureOf(row),
    alt: `Example ${columns.index[row]} beside its map`,
    loading: "lazy",
    className: sharp ? "sharp" : "",
  });
}

function card(row, query) {
  const failed = columns.index[row] in errors;
  const title = failed ? "error" : nameOf(columns.target[row]);
  const other = columns.adversarial[row] === null ? "" : ` | ${nameOf(columns.adversarial[row])}`;
  const known = columns.distance[row] === null ? ["margin", columns.margin[row]] : ["at", columns.distance[row]];
  const made = element(
    "a",
    { className: "card", href: address("example", query, { row }) },
    image(row),
    element("strong", {}, title + other),
    element("small", {}, `${columns.index[row]}${known[1] === null ? "" : `, ${known[0]} ${shown(known[1])}`}`),
  );
  made.dataset.row = row;
  return made;
}

function showExamples(query) {
  const rows = chosen(query);
  const nPages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
  const page = Math.min(Math.max(1, Number(query.get("page")) || 1), nPages);
  for (const name of FILTERS) form.elements[name].value = query.get(name) ?? "";
  document.getElementById("count").textContent =
    `${rows.length.toLocaleString("en")} of ${nExamples.toLocaleString("en")} examples, page ${page} of ${nPages}`;
  const grid = document.getElementById("grid");
  grid.className = "grid";
  grid.replaceChildren(...rows.slice((page - 1) * PER_PAGE, page * PER_PAGE).map((row) => card(row, query)));
  const link = (text, to, key) => {
    const made = element("a", { href: address("examples", query, { page: to }) }, text);
    made.dataset.key = key;
    return made;
  };
  document.getElementById("pages").replaceChildren(
    ...(page > 1 ? [link("First", 1, ""), link("Previous", page - 1, "ArrowLeft")] : []),
    element("span", {}, `${page} / ${nPages}`),
    ...(page < nPages ? [link("Next", page + 1, "ArrowRight"), link("Last", nPages, "")] : []),
  );
}

function showExample(query) {
  const row = Math.min(Math.max(0, Number(query.get("row")) || 0), nExamples - 1);
  const rows = chosen(query);
  const place = rows.indexOf(row);
  const page = place < 0 ? 1 : Math.floor(place / PER_PAGE) + 1;
  const link = (text, href, key) => {
    const made = element("a", { href }, text);
    made.dataset.key = key;
    return made;
  };
  const neighbours = [];
  if (place > 0) neighbours.push(link("Previous", address("example", query, { row: rows[place - 1] }), "ArrowLeft"));
  if (place >= 0 && place + 1 < rows.length) {
    neighbours.push(link("Next", address("example", query, { row: rows[place + 1] }), "ArrowRight"));
  }
  const facts = [
    ["Label", columns.label[row] === null ? "none" : nameOf(columns.label[row])],
    ["Predicted", nameOf(columns.prediction[row])],
    ["Explained", nameOf(columns.target[row])],
    ["Other side", columns.found[row] === false ? "not found" : nameOf(columns.adversarial[row])],
    ["Distance", shown(columns.distance[row])],
    ["Margin", shown(columns.margin[row])],
    ["Evaluations", shown(columns.evaluations[row])],
    ["Completeness gap", shown(columns.completeness_gap[row])],
    ["Error", errors[columns.index[row]]],
  ].filter(([, value]) => value !== undefined);
  const index = columns.index[row];
  sections.example.replaceChildren(
    element("nav", { ariaLabel: "Examples" }, link("Back to all", address("examples", query, { row: "", page }), "Escape"), ...neighbours),
    element("h2", { tabIndex: -1 }, `Example ${index}`),
    element(
      "div",
      { className: "beside" },
      element(
        "figure",
        {},
        image(row),
        ...(pictures ? [element("figcaption", {}, element("span", {}, "example"), element("span", {}, "map"))] : []),
      ),
      element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    ),
  );
}

function fillFilters() {
  for (const name of ["target", "adversarial", "label"]) {
    const numbers = [...new Set(columns[name])].filter((number) => number !== null).sort((a, b) => a - b);
    form.elements[name].replaceChildren(
      element("option", { value: "" }, "any"),
      ...numbers.map((number) => element("option", { value: number }, nameOf(number))),
    );
    form.elements[name].closest("label").hidden = numbers.length === 0;
  }
}

let last = null;
function show() {
  const { view, query } = readAddress();
  for (const [id, section] of Object.entries(sections)) section.hidden = id !== view;
  for (const link of document.querySelectorAll("header a")) {
    const current = link.dataset.view === view || (view === "example" && link.dataset.view === "examples");
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "examples") showExamples(query);
  if (view === "example") showExample(query);
  if (view === "example") sections.example.querySelector("h2").focus({ preventScroll: true });
  if (view === "examples" && last?.view === "example") {
    document.querySelector(`#grid [data-row="${last.query.get("row")}"]`)?.focus();
  } else if (last && last.view !== view) {
    window.scrollTo(0, 0);
  }
  last = { view, query };
}

function go(to) {
  history.pushState(null, "", to);
  show();
}
form.addEventListener("change", () => {
  const values = Object.fromEntries(FILTERS.map((name) => [name, form.elements[name].value]));
  go(address("examples", new URLSearchParams(), values));
});
form.addEventListener("reset", (event) => {
  event.preventDefault();
  go("#examples");
});
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("select")) return;
  const { view } = readAddress();
  const link = sections[view].querySelector(`[data-key="${event.key}"]`);
  if (link) {
    event.preventDefault();
    go(link.getAttribute("href"));
  }
});
for (const strip of document.querySelectorAll("[data-rows]")) {
  const rows = strip.dataset.rows.split(" ").filter(Boolean).map(Number);
  strip.replaceChildren(...rows.map((row) => card(row, new URLSearchParams(strip.dataset.query))));
}
window.addEventListener("popstate", show); // links, "back" and "forward"
fillFilters();
show();
