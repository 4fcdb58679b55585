/* One entry for each box to look at: its row in data.boxes, the crop around it, and what was decided. */
const entries = data.shown.map(([row, x, y, width, height, picture]) => ({
  row, x, y, width, height, picture, verdict: "", name: data.names[data.boxes[row][1]],
}));
let at = 0;
const decidedAt = [];  // positions of what was decided, the latest last
let unsaved = false;
const rowsOfImage = new Map();
data.boxes.forEach((box, row) => rowsOfImage.set(box[0], [...(rowsOfImage.get(box[0]) || []), row]));

const numKept = data.boxes.filter((box) => box[7]).length;
byId("title").textContent = `Review of ${data.title}`;
byId("about").textContent = `${count(entries.length, "box", "boxes")} nearest to the threshold, of ${whole(numKept)} in `
  + count(data.images.length, "image") + (data.num_below ? ` and ${count(data.num_below, "candidate")} below it.` : ".");

function thumbnail({ row, x, y, width, height, picture }) {
  const [, , left, top, w, h] = data.boxes[row];
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMid slice" },
    draw("image", { href: picture, width, height, preserveAspectRatio: "none" }),
    draw("rect", { class: "box asked", x: left - x, y: top - y, width: w, height: h }));
}

const thumbs = entries.map((entry, number) => make("button", { type: "button", class: "thumb",
  "aria-label": `Box ${number + 1}: ${entry.name}`, onclick: () => go(number) },
  thumbnail(entry)));
byId("strip").append(...thumbs);

function allNames() {
  return [...new Set([...data.names, ...entries.map((entry) => entry.name)])];
}

function go(number) {
  at = Math.max(0, Math.min(entries.length - 1, number));
  show();
}

function show() {
  const entry = entries[at];
  if (!entry) return;
  const [image, , , , , , score, kept] = data.boxes[entry.row];
  const inCrop = ([, , x, y, w, h]) => ({ x: x - entry.x, y: y - entry.y, w, h });
  const others = rowsOfImage.get(image).filter((row) => row !== entry.row && data.boxes[row][7])
    .map((row) => ({ ...inCrop(data.boxes[row]), kind: "other", label: "" }));
  byId("picture").replaceChildren(pictureWithBoxes(entry.picture, entry.width, entry.height,
    [...others, { ...inCrop(data.boxes[entry.row]), kind: "asked", label: "" }], `Box of ${entry.name}`));
  byId("name").textContent = entry.name;
  byId("score").textContent = `${data.kind} ${score.toFixed(2)}` + { "": "", accepted: ", accepted", rejected: ", rejected" }[entry.verdict];
  byId("below").textContent = kept ? "" : "Below the threshold: saved only if accepted.";
  byId("file").textContent = `${at + 1} of ${entries.length}: ${data.images[image][0]}`;
  byId("new-name").value = "";
  byId("names").replaceChildren(...allNames().map((name) => make("option", { value: name })));
  byId("accept").setAttribute("aria-pressed", String(entry.verdict === "accepted"));
  byId("reject").setAttribute("aria-pressed", String(entry.verdict === "rejected"));
  const done = entries.filter((item) => item.verdict);
  byId("progress").textContent = `${done.length} of ${entries.length} reviewed: `
    + `${done.filter((item) => item.verdict === "accepted").length} accepted, `
    + `${done.filter((item) => item.verdict === "rejected").length} rejected`;
  thumbs.forEach((thumb, number) => {
    thumb.className = `thumb ${entries[number].verdict}`;
    if (number === at) thumb.setAttribute("aria-current", "true");
    else thumb.removeAttribute("aria-current");
  });
  thumbs[at].scrollIntoView({ block: "nearest" });
}

function decide(verdict, name = null) {
  const entry = entries[at];
  if (!entry) return;
  entry.verdict = verdict;
  entry.name = name || (verdict ? entry.name : data.names[data.boxes[entry.row][1]]);
  if (verdict) decidedAt.push(at);
  unsaved = true;
  go(verdict ? at + 1 : at);
}

/* Take back what was decided of this box, or if that is nothing, what was decided last. */
function undo() {
  while (!(entries[at] || {}).verdict && decidedAt.length) at = decidedAt.pop();
  decide("");
}

/* The whole set: kept boxes that were not rejected, and candidates that were accepted. */
function coco() {
  const decided = new Map(entries.map((entry) => [entry.row, entry]));
  const names = allNames();
  const annotations = [];
  data.boxes.forEach(([image, name, x, y, w, h, score, kept], row) => {
    const entry = decided.get(row) || { verdict: "", name: data.names[name] };
    if (entry.verdict === "rejected" || (!kept && entry.verdict !== "accepted")) return;
    annotations.push({
      id: annotations.length + 1, image_id: image + 1, category_id: names.indexOf(entry.name) + 1, bbox: [x, y, w, h],
      area: Math.round(100 * w * h) / 100, iscrowd: 0, segmentation: [], score,
      ...(entry.verdict ? { reviewed: true } : {}),
    });
  });
  return {
    info: { description: "boxes of a detector, reviewed" }, licenses: [],
    images: data.images.map(([file_name, height, width], row) => ({ id: row + 1, file_name, height, width })),
    annotations,
    categories: names.map((name, row) => ({ id: row + 1, name })),
  };
}

function save() {
  const link = make("a", { download: data.saved_as });
  link.href = URL.createObjectURL(new Blob([JSON.stringify(coco())], { type: "application/json" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  unsaved = false;
  byId("saved").textContent = `Saved as ${data.saved_as} in the download folder of the browser.`;
}

byId("accept").addEventListener("click", () => decide("accepted"));
byId("reject").addEventListener("click", () => decide("rejected"));
byId("undo").addEventListener("click", undo);
byId("back").addEventListener("click", () => go(at - 1));
byId("on").addEventListener("click", () => go(at + 1));
byId("save").addEventListener("click", save);
byId("rename").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = byId("new-name").value.trim();
  byId("new-name").blur();
  if (name) decide("accepted", name);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === byId("new-name")) {
    if (event.key === "Escape") byId("new-name").blur();
    return;
  }
  const actions = {
    a: () => decide("accepted"), r: () => decide("rejected"), u: undo, n: () => byId("new-name").focus(),
    ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1),
  };
  if (event.key in actions) {
    event.preventDefault();
    actions[event.key]();
  }
});
addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
if (entries.length) show();
else byId("progress").textContent = "There are no boxes to review.";
