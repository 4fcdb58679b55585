"use strict";

// All text from outside is set through textContent, which does not parse it as markup.

let leastScore = 0.05; // lowest score requested from the server; the slider filters the answer without a new request
const MOST_BOXES = 300;
const LABEL_PX = 13;
const MOST_ROWS = 300;

const element = (id) => document.getElementById(id);
let file = null;
let examples = []; // example pictures: each has its file and the input element of its name
let found = null; // the answer for the picture that is shown
let asking = null; // the request in progress
let limits = null;

function showError(sentence) {
  element("error").textContent = sentence;
}

function sizeWords(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function showResult(hasAnswer) {
  element("filter").hidden = element("list").hidden = !hasAnswer;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function takePicture(given) {
  if (asking) asking.abort();
  file = given;
  found = null;
  showError("");
  element("image-help").textContent = `${given.name}, ${sizeWords(given.size)}`;
  const picture = element("picture");
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.classList.remove("blank");
  picture.src = URL.createObjectURL(given);
  picture.alt = given.name;
  element("boxes").replaceChildren();
  element("status").textContent = "";
  showResult(false);
  element("result").hidden = false;
}

function addExamples(files) {
  showError("");
  for (const given of files) {
    const row = document.createElement("li");
    const picture = document.createElement("img");
    picture.src = URL.createObjectURL(given);
    picture.alt = "";
    const name = document.createElement("input");
    name.type = "text";
    name.value = given.name.replace(/\.[^.]*$/, "").replace(/[_,\s]+/g, " ").trim();
    name.setAttribute("aria-label", `Name of ${given.name}`);
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove ${given.name}`);
    const example = { file: given, name };
    remove.addEventListener("click", () => {
      examples = examples.filter((other) => other !== example);
      URL.revokeObjectURL(picture.src);
      row.remove();
      element("example").focus();
    });
    row.append(picture, name, remove);
    element("examples").append(row);
    examples.push(example);
  }
}

// Returns a sentence about what is missing before a request can be sent; "" if nothing is.
function whatIsMissing() {
  if (!file) return "Choose a picture first.";
  if (!examples.length && !/[^\s,]/.test(element("names").value)) return "Type at least one name to look for.";
  if (examples.some((example) => !example.name.value.trim())) return "Give a name to each picture of what to look for.";
  if (!limits) return "";
  if (examples.length > limits.examples) return `At most ${limits.examples} pictures of what to look for may be sent.`;
  const largest = limits.megabytes * 1e6;
  if (file.size > largest) return `The picture file is larger than ${limits.megabytes} megabytes.`;
  const bytes = examples.reduce((sum, example) => sum + example.file.size, file.size);
  return bytes > largest ? `All pictures together are larger than ${limits.megabytes} megabytes.` : "";
}

// Returns the score and name of the best box for a sentence, "" without any box.
function bestBox() {
  const [best] = found.annotations;
  if (!best) return "";
  const { name } = found.categories.find((category) => category.id === best.category_id);
  return `; the best is ${name} ${best.score.toFixed(2)}`;
}

function shown() {
  const least = Number(element("threshold").value);
  return found.annotations.filter((annotation) => annotation.score >= least);
}

function draw() {
  if (!found) return;
  const { width, height } = found.images[0];
  const names = new Map(found.categories.map((category) => [category.id, category.name]));
  const colors = new Map(found.categories.map((category) => [category.id, `rgb(${category.color.join(" ")})`]));
  const boxes = element("boxes");
  boxes.setAttribute("viewBox", `0 0 ${width} ${height}`);
  boxes.replaceChildren();
  const picture = element("picture");
  picture.style.aspectRatio = `${width} / ${height}`;
  const pixel = width / (picture.clientWidth || width); // size of a screen pixel, in pixels of the picture
  const annotations = shown();
  for (const annotation of [...annotations].reverse()) { // the best on top
    const [x, y, w, h] = annotation.bbox;
    const color = colors.get(annotation.category_id);
    boxes.append(svg("rect", { x, y, width: w, height: h, fill: "none", stroke: "#fff", "stroke-width": 4 * pixel }));
    boxes.append(svg("rect", { x, y, width: w, height: h, fill: "none", stroke: color, "stroke-width": 2 * pixel }));
    const size = LABEL_PX * pixel;
    const text = svg("text", { "font-size": size, fill: "#fff" });
    text.textContent = `${names.get(annotation.category_id)} ${annotation.score.toFixed(2)}`;
    boxes.append(text);
    const wide = text.getComputedTextLength() + size * 0.5;
    const left = Math.max(0, Math.min(x, width - wide));
    const top = y >= size * 1.3 ? y - size * 1.3 : y;
    text.setAttribute("x", left + size * 0.25);
    text.setAttribute("y", top + size);
    boxes.insertBefore(svg("rect", { x: left, y: top, width: wide, height: size * 1.3, fill: color }), text);
  }
  const rows = annotations.slice(0, MOST_ROWS).map((annotation) => {
    const [x, y, w, h] = annotation.bbox.map(Math.round);
    const row = document.createElement("tr");
    const texts = [names.get(annotation.category_id), annotation.score.toFixed(2), `${x}, ${y}`, `${w} × ${h}`];
    for (const text of texts) row.insertCell().textContent = text;
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colors.get(annotation.category_id);
    row.cells[0].prepend(swatch);
    return row;
  });
  element("rows").replaceChildren(...rows);
  element("threshold-value").textContent = Number(element("threshold").value).toFixed(2);
  const counts = new Map();
  for (const { category_id: id } of annotations) counts.set(id, (counts.get(id) || 0) + 1);
  const listed = [...counts].map(([id, count]) => `${count} × ${names.get(id)}`).join(", ");
  element("status").textContent = annotations.length
    ? `${annotations.length} ${annotations.length === 1 ? "box" : "boxes"}: ${listed}.`
    : `No box${bestBox()}. Lower the minimum ${element("score-word").textContent}, or try other words.`;
}

async function ask(event) {
  event.preventDefault();
  const missing = whatIsMissing();
  if (missing) return showError(missing);
  if (asking) asking.abort();
  const request = new AbortController();
  asking = request;
  showError("");
  element("find").setAttribute("aria-busy", "true");
  element("status").textContent = "Looking…";
  const body = new FormData();
  body.append("image", file);
  body.append("names", element("names").value);
  for (const example of examples) {
    body.append("example", example.file);
    body.append("example_name", example.name.value);
  }
  body.append("threshold", String(leastScore));
  body.append("limit", String(limits ? Math.min(MOST_BOXES, limits.boxes) : MOST_BOXES));
  try {
    const reply = await fetch("api/detect", { method: "POST", body, signal: request.signal });
    const answer = await reply.json().catch((error) => {
      if (request.signal.aborted) throw error; // a newer request has replaced this one
      return null;
    });
    if (!reply.ok || !answer) throw new Error(answer ? answer.error : `The server answered with ${reply.status}.`);
    found = answer;
    showError("");
    showResult(true);
    element("picture").classList.toggle("blank", !element("picture").naturalWidth);
    draw();
  } catch (error) {
    if (error.name === "AbortError" || request.signal.aborted) return;
    found = null;
    element("boxes").replaceChildren();
    element("status").textContent = "";
    showResult(false);
    showError(error instanceof TypeError ? "The server cannot be reached, or it ended the connection." : error.message);
  } finally {
    if (asking === request) {
      asking = null;
      element("find").removeAttribute("aria-busy");
    }
  }
}

function download() {
  const filtered = { ...found, info: { ...found.info, threshold: Number(element("threshold").value) }, annotations: shown() };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(filtered, null, 1)], { type: "application/json" }));
  link.download = `${found.images[0].file_name.replace(/\.[^.]*$/, "")}.detections.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function readInfo() {
  const info = await (await fetch("api/info")).json();
  limits = info.limits;
  element("model").textContent = `Detector ${info.model}, ${info.device}`;
  element("score-word").textContent = info.calibrated ? "probability" : "score";
  leastScore = Math.min(leastScore, info.threshold); // a detector's threshold may be even lower
  element("threshold").min = leastScore;
  element("threshold").value = info.threshold;
  element("threshold-value").textContent = info.threshold.toFixed(2);
  element("trained-names").textContent = info.trained_names.join(", ");
  element("trained").hidden = !info.trained_names.length;
}

element("form").addEventListener("submit", ask);
element("image").addEventListener("change", () => element("image").files[0] && takePicture(element("image").files[0]));
element("example").addEventListener("change", () => {
  addExamples(element("example").files);
  element("example").value = "";
});
element("threshold").addEventListener("input", draw);
element("download").addEventListener("click", download);
element("picture").addEventListener("load", draw);
new ResizeObserver(draw).observe(element("picture"));
element("picture").addEventListener("error", () => element("picture").classList.add("blank"));
element("names").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element("form").requestSubmit();
});
document.addEventListener("paste", (event) => {
  const [pasted] = event.clipboardData.files;
  if (pasted) takePicture(pasted);
});

// Files dropped on the area of examples are examples; anywhere else, the first file is the picture.
const isForExamples = (event) => element("example-drop").contains(event.target);

function showTarget(event) {
  element("drop").classList.toggle("over", event !== null && !isForExamples(event));
  element("example-drop").classList.toggle("over", event !== null && isForExamples(event));
}

for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    showTarget(event);
  });
}
document.addEventListener("dragleave", (event) => event.relatedTarget || showTarget(null));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  showTarget(null);
  const dropped = event.dataTransfer.files;
  if (isForExamples(event)) addExamples(dropped);
  else if (dropped.length) takePicture(dropped[0]);
});
readInfo().catch(() => showError("The server cannot be reached."));
