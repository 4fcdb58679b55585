"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/* An element. Strings among the children become text, so that no name is ever read as markup. */
function make(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "onclick") element.addEventListener("click", value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

/* A name that may be broken behind each underscore. */
const breakable = (text) => text.split(/(?<=_)/).flatMap((part) => [part, make("wbr")]);
const whole = (value) => (value === null ? "–" : value.toLocaleString("en"));
const count = (value, noun, plural = `${noun}s`) => `${whole(value)} ${value === 1 ? noun : plural}`;
const percent = (value) => (value === null ? "–" : (100 * value).toFixed(1));
const fraction = (digits) => (value) => (value === null ? "–" : value.toFixed(digits));

/* A table whose headers sort it. Column: key, label, shown (value to text; numbers alone have one), cell (row to
   element), help. An empty value comes last whichever way the table is sorted. */
function sortableTable(columns, rows, { sort, descending = true, most = 300, classOf = () => "" }) {
  let by = sort;
  let down = descending;
  let wanted = () => true;
  let limit = most;
  const body = make("tbody");
  const more = make("button", { type: "button", onclick: () => { limit = Infinity; show(); } });
  const heads = columns.map((column) => {
    const button = make("button", { type: "button", title: column.help || "", onclick: () => {
      down = by === column.key ? !down : Boolean(column.shown);
      by = column.key;
      show();
    } }, column.label);
    return make("th", { scope: "col", class: column.shown ? "number" : "" }, button);
  });

  function order(one, other) {
    const [a, b] = [one[by], other[by]];
    if (a === null || b === null) return (a === null) - (b === null);
    const difference = typeof a === "string" ? a.localeCompare(b) : a - b;
    return down ? -difference : difference;
  }

  function show() {
    const kept = rows.filter(wanted).sort(order);
    columns.forEach((column, number) => {
      heads[number].setAttribute("aria-sort", by !== column.key ? "none" : down ? "descending" : "ascending");
      heads[number].firstChild.textContent = column.label + (by !== column.key ? "" : down ? " ▼" : " ▲");
    });
    body.replaceChildren(...kept.slice(0, limit).map((row) => make("tr", { class: classOf(row) },
      columns.map((column) => make("td", { class: column.shown ? "number" : column.cell || column.wide ? "name" : "" },
        column.cell ? column.cell(row) : column.shown ? column.shown(row[column.key]) : breakable(row[column.key]))))));
    more.textContent = `Show all ${whole(kept.length)} rows`;
    more.classList.toggle("hidden", kept.length <= limit);
  }

  show();
  const table = make("table", {}, make("thead", {}, make("tr", {}, heads)), body);
  return {
    element: make("div", {}, make("div", { class: "scroll tall", tabindex: "0" }, table), more),
    filter(test) { wanted = test; show(); },
    show,
  };
}

/* Lines over 0..1 by 0..1. Series: label, points [[x, y], ...], color (number of the palette), dots. */
function chart(series, { x, y, diagonal = false }) {
  const [left, top, side] = [46, 10, 340];
  const at = ([a, b]) => `${(left + a * side).toFixed(1)},${(top + (1 - b) * side).toFixed(1)}`;
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${left + side + 14} ${top + side + 44}`, role: "img",
    "aria-label": `${y} over ${x}` });
  for (const tick of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    const [h, v] = [left + tick * side, top + (1 - tick) * side];
    svg.append(draw("line", { class: "grid", x1: h, x2: h, y1: top, y2: top + side }),
      draw("line", { class: "grid", x1: left, x2: left + side, y1: v, y2: v }),
      draw("text", { x: h, y: top + side + 17, "text-anchor": "middle" }, String(tick)),
      draw("text", { x: left - 7, y: v + 4, "text-anchor": "end" }, String(tick)));
  }
  svg.append(draw("text", { x: left + side / 2, y: top + side + 37, "text-anchor": "middle" }, x),
    draw("text", { x: 12, y: top + side / 2, "text-anchor": "middle",
      transform: `rotate(-90 12 ${top + side / 2})` }, y));
  if (diagonal) svg.append(draw("path", { d: `M${at([0, 0])}L${at([1, 1])}`, stroke: "var(--muted)", "stroke-dasharray": "5 4" }));
  for (const { label, points, color, dots, thick } of series) {
    const stroke = `var(--series${color % 6})`;
    svg.append(draw("path", { d: points.length ? "M" + points.map(at).join("L") : "", fill: "none", stroke,
      "stroke-width": thick ? 3 : 1.8 }, draw("title", {}, label)));
    if (dots) for (const point of points) {
      const [cx, cy] = at(point).split(",");
      svg.append(draw("circle", { cx, cy, r: 3.5, fill: stroke },
        draw("title", {}, `${label}: ${x} ${point[0].toFixed(3)}, ${y} ${point[1].toFixed(3)}`)));
    }
  }
  const legend = make("ul", { class: "legend" }, series.map(({ label, color, points }) => {
    const item = make("li", {}, make("i"), make("span", {}, label + (points.length ? "" : " (none)")));
    item.style.color = `var(--series${color % 6})`;
    return item;
  }));
  return make("div", {}, svg, legend);
}

/* Boxes over a picture. Box: x, y, w, h in its pixels, kind (a class of the style), label or "". */
function pictureWithBoxes(source, width, height, boxes, description) {
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": description });
  svg.style.setProperty("--ratio", width / height);
  if (source) svg.append(draw("image", { href: source, width, height, preserveAspectRatio: "none" }));
  const labels = [];
  for (const { x, y, w, h, kind, label } of boxes) {
    svg.append(draw("rect", { class: `box ${kind}`, x, y, width: w, height: h }, label ? draw("title", {}, label) : null));
    if (label) labels.push([draw("text", { class: kind }, label), x, y, w, h, kind]);
  }
  svg.append(...labels.map(([text]) => text));
  /* Labels have the same size on the screen however large the picture is shown, stay inside it and off each other. */
  function place() {
    const size = 12.5 * width / Math.max(1, svg.clientWidth);
    const taken = [];
    for (const [text, x, y, w, h, kind] of labels) {
      text.setAttribute("font-size", size);
      const long = text.getComputedTextLength();
      const left = Math.max(0.2 * size, Math.min(x, width - long - 0.2 * size));
      const wanted = kind === "missed" ? y + h + 1.05 * size : y - 0.3 * size;
      const inside = (bottom) => Math.min(height - 0.3 * size, Math.max(size, bottom));
      const isFree = (bottom) => taken.every(([a, b, c]) => left > b || left + long < a || Math.abs(bottom - c) > 1.1 * size);
      const steps = [0, 1, -1, 2, -2, 3, -3, 4].map((step) => inside(wanted + 1.15 * size * step));
      const bottom = steps.find(isFree) || steps[0];
      taken.push([left, left + long, bottom]);
      text.setAttribute("x", left);
      text.setAttribute("y", bottom);
    }
  }
  new ResizeObserver(place).observe(svg);
  return svg;
}
