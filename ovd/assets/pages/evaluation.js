const known = (value) => (value < 0 ? null : value);
const rows = data.classes.map(([name, group, trained, boxes, detections, AP, AP50, AR, alarms], number) => ({
  number, name, group, trained: trained === null ? "" : trained ? "yes" : "no", boxes, detections,
  AP: known(AP), AP50: known(AP50), AR: known(AR), alarms,
}));

/* Header and metrics. */
byId("title").textContent = data.title;
byId("source").textContent = data.source;
for (const { protocol, metrics } of data.protocols) {
  byId("metrics").append(make("h3", {}, protocol), make("div", { class: "cards" },
    metrics.map(([name, value]) => make("div", { class: "card" }, make("b", {}, percent(known(value))), make("span", {}, name)))));
}
byId("notes").append(make("p", {}, `Metrics are in percent; engine ${data.engine}.`), ...data.notes.map((note) => make("p", {}, note)));

/* Classes and curves. */
let chosen = null;
const columns = [
  { key: "name", label: "class", cell: (row) => make("button", { type: "button", "aria-pressed": String(row.number === chosen),
    onclick: () => { chosen = row.number === chosen ? null : row.number; table.show(); showCurves(); } }, breakable(row.name)) },
  { key: "AP", label: "AP", shown: percent, help: "over IoU 0.5 to 0.95" },
  { key: "AP50", label: "AP50", shown: percent, help: "at IoU 0.5" },
  { key: "AR", label: "AR", shown: percent, help: "highest recall, over IoU 0.5 to 0.95" },
  { key: "boxes", label: "boxes", shown: whole, help: "true boxes, without crowds" },
  { key: "detections", label: "found", shown: whole, help: "detections of any score" },
  { key: "alarms", label: "absent", shown: whole, help: "images without the class in which it is reported" },
];
if (data.groups.length) columns.push({ key: "group", label: "group" });
if (rows.some((row) => row.trained)) columns.push({ key: "trained", label: "trained", help: "whether its name was trained on" });
const table = sortableTable(columns, rows, { sort: "AP", classOf: (row) => (row.number === chosen ? "chosen" : "") });
byId("class-table").append(table.element);
byId("class-note").textContent = `${count(rows.length, "class", "classes")}, ${whole(rows.filter((row) => row.boxes).length)} with a true box. `
  + "Click a header to sort, or a class to show its curve.";

let group = null;
const groupButtons = data.groups.map((name) => make("button", { type: "button", "aria-pressed": "false", onclick: () => {
  group = group === name ? null : name;
  groupButtons.forEach((button, number) => button.setAttribute("aria-pressed", String(data.groups[number] === group)));
  filterClasses();
} }, name));
byId("group-buttons").append(...groupButtons);
byId("filter").addEventListener("input", filterClasses);
function filterClasses() {
  const text = byId("filter").value.trim().toLowerCase();
  table.filter((row) => row.name.toLowerCase().includes(text) && (group === null || row.group === group));
}

function curve(precision) {
  return precision === null ? [] : precision.map((value, number) => [number / (precision.length - 1), value / 1000]);
}

/* A group of classes has one color in all charts, as in the pictures beside the page; other curves have what is left. */
const GROUP_COLORS = { all: 0, base: 1, rare: 2, novel: 2, common: 3, frequent: 4 };
function colorsOf(labels) {
  const own = labels.map((label) => GROUP_COLORS[label.split(",")[0]]);
  const free = [0, 1, 2, 3, 4].filter((color) => !own.includes(color));
  return own.map((color) => color ?? free.shift() ?? 0);
}

function showCurves() {
  const colors = colorsOf(data.curves.map(({ label }) => label));
  const series = data.curves.map(({ label, precision }, number) => ({ label, color: colors[number], points: curve(precision) }));
  if (chosen !== null) {
    series.push({ label: rows[chosen].name, color: 5, thick: true, points: curve(data.class_curves[chosen]) });
  }
  byId("curves").replaceChildren(chart(series, { x: "recall", y: "precision" }));
}
showCurves();

/* Images. */
const KINDS = ["right", "wrong", "missed", "unknown", "true"];
const plain = (name) => name.replaceAll("_", " ");
const named = ([name, group]) => (group === "rare" ? "★ " : "") + plain(name);
const labelOf = (item, kind, score) => (kind === 2 ? `(${named(item)})`
  : (kind === 1 ? "✗ " : kind === 0 ? "✓ " : "") + named(item) + (score === null ? "" : ` ${score.toFixed(2)}`));
const words = (boxes, kind) => boxes.filter((box) => box[5] === kind)
  .map(([, , , , name, , score]) => named(data.classes[name]) + (score === null ? "" : ` ${score.toFixed(2)}`)).join(", ");

function figure(image) {
  const crowded = image.boxes.length > 24;
  const boxes = [...image.boxes].sort((a, b) => b[5] - a[5]).map(([x, y, w, h, name, kind, score]) => ({
    x, y, w, h, kind: KINDS[kind],
    label: kind >= 3 || (crowded && kind === 0) ? "" : labelOf(data.classes[name], kind, score),
  }));
  const list = (kind, word) => (words(image.boxes, kind)
    ? make("div", {}, make("b", { class: `${KINDS[kind]}-word` }, word), ` ${words(image.boxes, kind)}`) : null);
  return make("figure", {}, pictureWithBoxes(image.picture, image.width, image.height, boxes, image.file),
    make("figcaption", {}, make("div", {}, make("b", {}, image.file), make("span", { class: "muted" },
      ` F1 ${image.f1.toFixed(2)}: ${image.right} right, ${image.wrong} wrong, ${image.missed} missed`
      + (image.hidden ? `; ${count(image.hidden, "box", "boxes")} not drawn` : ""))),
    image.fault ? make("div", { class: "wrong-word" }, image.fault) : null, list(1, "wrong"), list(2, "missed")));
}

function showImages(which) {
  imageButtons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.which === which)));
  byId("pictures").replaceChildren(...data.images[which].map(figure));
}
const imageButtons = Object.keys(data.images).map((which) => make("button", { type: "button", "data-which": which,
  onclick: () => showImages(which) }, `${which} ${data.images[which].length}`));
byId("image-note").append(data.image_note);
if (imageButtons.length) {
  byId("image-note").append(" Boxes: ", ...["right", "wrong", "missed", "unknown"].flatMap((kind) => [
    make("b", { class: `${kind}-word` }, kind === "unknown" ? "not judged" : kind), ", "]), `missed ones in parentheses, true ones dashed in white${data.groups.includes("rare") ? "; ★ rare classes" : ""}.`);
  byId("image-buttons").append(...imageButtons);
  showImages("worst" in data.images ? "worst" : Object.keys(data.images)[0]);
}

/* Confused names. */
for (const { title, note, rows: pairs } of data.confusions) {
  const found = pairs.map(([name, named, count, of]) => ({ name, named, count, share: count / of }));
  byId("confusions").append(make("div", {}, make("h3", {}, title), make("p", { class: "muted small" }, note),
    found.length ? sortableTable([
      { key: "name", label: "true name", wide: true }, { key: "named", label: "detected as", wide: true },
      { key: "count", label: "boxes", shown: whole }, { key: "share", label: "% of class", shown: percent },
    ], found, { sort: "count" }).element : make("p", {}, "None.")));
}

/* Decisions. */
const decided = data.decisions.groups.map((item) => ({ ...item }));
byId("decisions").append(make("p", { class: "muted small" }, data.decisions.note), sortableTable([
  { key: "group", label: "classes" }, { key: "at", label: "threshold" },
  { key: "cgF1", label: "cgF1", shown: fraction(1), help: "100 x pmF1 x IL_MCC" },
  { key: "pmF1", label: "pmF1", shown: fraction(3), help: "F1 of boxes at IoU 0.5, where the class is present" },
  { key: "IL_MCC", label: "IL_MCC", shown: fraction(3), help: "correlation of reported and true presence" },
  { key: "absent", label: "absent per image", shown: fraction(2), help: "classes reported in an image that does not contain them" },
], decided, { sort: null }).element);
const alarming = rows.filter((row) => row.alarms).map(({ name, alarms, boxes }) => ({ name, alarms, boxes }));
byId("decisions").append(make("h3", {}, "Classes reported in images without them"), alarming.length ? sortableTable([
  { key: "name", label: "class", wide: true }, { key: "alarms", label: "images without it", shown: whole },
  { key: "boxes", label: "true boxes", shown: whole },
], alarming, { sort: "alarms", most: 100 }).element : make("p", {}, "None."));

/* Calibration. */
const reliabilityColors = colorsOf(data.reliability.groups.map(({ group: name }) => name));
byId("calibration").append(make("p", { class: "muted small" }, data.reliability.note), make("div", { class: "halves" },
  chart(data.reliability.groups.map(({ group: name, error, scores, outcomes }, number) => ({
    label: error === null ? name : `${name}, error ${error.toFixed(3)}`, color: reliabilityColors[number], dots: true, points: scores.map((score, bin) => [score, outcomes[bin]]),
  })), { x: "score", y: "share correct", diagonal: true })));
