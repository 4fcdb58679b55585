"""Edits of a good annotation file, each with the outcome it must have: other values, counts, or a refusal."""

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rng = np.random.Generator
Box = list[float]
SIZES = {3: (60, 90), 5: (80, 50), 8: (40, 130), 13: (100, 70), 21: (55, 56), 34: (90, 140)}
"""Height and width of each image, by id."""
NAMES = {2: "gull", 7: "red kite", 11: "owl"}


@dataclass
class Object:
    """An object of the good file, and whether it has to be read."""

    image_id: int
    name: str
    box: Box
    """Box as read, in the order x, y, width, height."""
    is_crowd: bool
    is_read: bool = True


@dataclass
class Case:
    """An annotation file that an edit changes, and the outcome it must have."""

    content: dict[str, Any]
    objects: list[Object]
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    """Number of findings that the report has to count, by fault code and treatment."""
    refused: str | None = None
    """Fault code if the file has to be refused, otherwise None."""
    options: dict[str, Any] = field(default_factory=dict)
    data: bytes | None = None
    """Bytes of the file, if it is not the JSON of `content`."""
    sizes: dict[int, tuple[int, int]] = field(default_factory=lambda: dict(SIZES))

    def refuse(self, code: str) -> None:
        self.refused = code

    def encoded(self) -> bytes:
        return json.dumps(self.content).encode() if self.data is None else self.data

    def pick(self, rng: Rng, name: str) -> tuple[int, dict[str, Any]]:
        row = int(rng.integers(len(self.content[name])))
        return row, self.content[name][row]


def good_case() -> Case:
    rng = np.random.default_rng(0)
    ids = {name: category_id for category_id, name in NAMES.items()}
    objects = []
    for image_id, (height, width) in SIZES.items():
        for number in range(4):
            x, y = float(rng.integers(1, width // 2)), float(rng.integers(1, height // 2))
            # The first box almost reaches the far corner, so it leaves the image if a recorded side is too small.
            far = [x, y, width - 1 - x, height - 1 - y]
            box = far if number == 0 else [x, y, float(rng.integers(8, 20)) + 0.5, float(rng.integers(8, 18)) + 0.25]
            objects.append(Object(image_id, list(NAMES.values())[(image_id + number) % 3], box, number == 3))
    content = {
        "images": [
            {"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width}
            for image_id, (height, width) in SIZES.items()
        ],
        "annotations": [
            {"id": 100 + row, "image_id": item.image_id, "category_id": ids[item.name], "bbox": list(item.box),
             "iscrowd": int(item.is_crowd)}
            for row, item in enumerate(objects)
        ],
        "categories": [{"id": category_id, "name": name} for category_id, name in NAMES.items()],
    }  # fmt: skip
    return Case(content, objects)


def _spell_ids(case: Case, rng: Rng) -> None:
    """Write ids as 7.0 or "7" in random places."""
    for name, fields in (("images", ["id"]), ("annotations", ["image_id", "category_id"]), ("categories", ["id"])):
        for row in case.content[name]:
            for each in fields:
                row[each] = [int, float, str][rng.integers(3)](row[each])


def _bad_reference(case: Case, rng: Rng) -> None:
    _, row = case.pick(rng, "annotations")
    row[["image_id", "category_id"][rng.integers(2)]] = [999, -1, "999", 4.5, None, True, [3], "three", 2**70][
        rng.integers(9)
    ]
    case.refuse("F3")


def _annotations_without_ids_of_their_own(case: Case, rng: Rng) -> None:
    kind = rng.integers(4)
    for number, row in enumerate(case.content["annotations"]):
        if kind == 0 or (kind == 1 and number % 3 == 0):
            del row["id"]
        elif kind == 2:
            row["id"] = number % 4
        elif kind == 3:
            row["id"] = None if number == 5 else number
    case.counts["F2", "repaired"] = 1


def _spell_crowd(case: Case, rng: Rng) -> None:
    for row, item in zip(case.content["annotations"], case.objects, strict=True):
        item.is_crowd = bool(rng.integers(2))
        forms = [int(item.is_crowd), item.is_crowd, str(int(item.is_crowd)), float(item.is_crowd)]
        row["iscrowd"] = forms[rng.integers(4)]
        if not item.is_crowd and rng.random() < 0.3:
            del row["iscrowd"]


def _bad_crowd(case: Case, rng: Rng) -> None:
    case.pick(rng, "annotations")[1]["iscrowd"] = [2, -1, "yes", "", None, 1.5, [], "2", {}][rng.integers(9)]
    case.refuse("F1")


def _mark(case: Case, rng: Rng) -> None:
    case.data = codecs.BOM_UTF8 + json.dumps(case.content, indent=int(rng.integers(3)), ensure_ascii=False).encode()


def _shuffle(case: Case, rng: Rng) -> None:
    for name in ("annotations", "categories", "images"):
        rows = case.content[name]
        case.content[name] = [rows[row] for row in rng.permutation(len(rows)).tolist()]


def _further_keys(case: Case, rng: Rng) -> None:
    values: list[Any] = [None, [[1, 2, 3]], {"a": {}}, "text", 1e300, 2**80, {"counts": [1], "size": [2, 2]}]
    for name in case.content:
        for row in case.content[name]:
            row[f"key {rng.integers(5)}"] = values[rng.integers(len(values))]
    case.content["info"] = values[rng.integers(len(values))]


def _bad_box(case: Case, rng: Rng) -> None:
    _, row = case.pick(rng, "annotations")
    number: Any = [float("nan"), float("inf"), -float("inf"), "12 px", None, True, [1], 1e12, 10**400][rng.integers(9)]
    row["bbox"][rng.integers(4)] = number
    if rng.random() < 0.3:
        row["bbox"] = [None, [], [1, 2, 3], [1, 2, 3, 4, 5], "1,2,3,4", {"x": 1}][rng.integers(6)]
    case.refuse("F6")


def _text_box(case: Case, rng: Rng) -> None:
    """Write width and height of some boxes as text, as Roboflow does for polygons."""
    rows = [row for row in case.content["annotations"] if rng.random() < 0.3]
    for row in rows:
        row["bbox"] = [*row["bbox"][:2], *(f"{side:.4f}" for side in row["bbox"][2:])]
    if rows:
        case.counts["F6", "repaired"] = len(rows)


def _no_box(case: Case, rng: Rng) -> None:
    del case.pick(rng, "annotations")[1]["bbox"]
    case.refuse("F6")


def _thin_box(case: Case, rng: Rng) -> None:
    row, annotation = case.pick(rng, "annotations")
    annotation["bbox"][2 + rng.integers(2)] = [0, 0.5, 0.99, -5, -1e5][rng.integers(5)]
    case.objects[row].is_read = False
    case.counts["F4", "skipped"] = 1


def _box_over_the_border(case: Case, rng: Rng) -> None:
    row, annotation = case.pick(rng, "annotations")
    item = case.objects[row]
    height, width = SIZES[item.image_id]
    over = float(rng.uniform(0.1, 500))
    x, y = width - 10.0, height - 12.0
    if rng.integers(2):
        annotation["bbox"], item.box = [x, y, 10 + over, 12 + over], [x, y, 10, 12]
    else:
        annotation["bbox"], item.box = [-over, -over, 10 + over, 12 + over], [0, 0, 10, 12]
    case.counts["F5", "repaired"] = 1


def _box_outside(case: Case, rng: Rng) -> None:
    row, annotation = case.pick(rng, "annotations")
    annotation["bbox"] = [[500, 5, 20, 20], [5, 500, 20, 20], [-90, 5, 20, 20], [5, -90.5, 20, 30]][rng.integers(4)]
    case.objects[row].is_read = False
    case.counts["F5", "skipped"] = 1


def _id_twice(case: Case, rng: Rng) -> None:
    name = ["images", "categories"][rng.integers(2)]
    rows = case.content[name]
    one, other = rng.choice(len(rows), 2, replace=False).tolist()
    rows[one]["id"] = [int, float, str][rng.integers(3)](rows[other]["id"])
    case.refuse("F2")


def _bad_name(case: Case, rng: Rng) -> None:
    _, row = case.pick(rng, "categories")
    row["name"] = ["", " ", "\t\n", None, 7, True, ["gull"], "\ud800", "half \udfff"][rng.integers(9)]
    if rng.random() < 0.15:
        del row["name"]
    case.refuse("F1")


def _near_name(case: Case, rng: Rng) -> None:
    name = ["Gull", "GULL", "gull ", "Red-Kite", "red_kite", "red  kite", "OWL"][rng.integers(7)]
    case.content["categories"].append({"id": 50, "name": name})
    case.counts["F2", "noticed"] = 1


def _double(case: Case, rng: Rng) -> None:
    row, annotation = case.pick(rng, "annotations")
    case.content["annotations"].append({**annotation, "id": 999})
    case.objects.append(case.objects[row])
    case.counts["F2", "noticed"] = 1


def _no_sizes(case: Case, rng: Rng) -> None:
    rows = case.content["images"]
    for row in rng.choice(len(rows), int(rng.integers(1, len(rows) + 1)), replace=False).tolist():
        for side in [["height"], ["width"], ["height", "width"]][rng.integers(3)]:
            if rng.integers(2):
                rows[row][side] = None
            else:
                del rows[row][side]
    case.counts["F12", "repaired"] = 1


def _spell_sizes(case: Case, rng: Rng) -> None:
    for row in case.content["images"]:
        side = ["height", "width"][rng.integers(2)]
        row[side] = float(row[side])


def _bad_size(case: Case, rng: Rng) -> None:
    side = ["height", "width"][rng.integers(2)]
    case.pick(rng, "images")[1][side] = [0, -5, "640", 40.5, True, [], 10**10, 2**70, float("nan")][rng.integers(9)]
    case.refuse("F1")


def _swapped_sizes(case: Case, rng: Rng) -> None:
    rows = [row for row in case.content["images"] if abs(row["height"] - row["width"]) > 5]
    count = int(rng.integers(1, len(rows) + 1))
    for row in (rows[each] for each in rng.choice(len(rows), count, replace=False).tolist()):
        row["height"], row["width"] = row["width"], row["height"]
    if count >= 5:
        case.refuse("F12")
    else:
        case.counts["F12", "repaired"] = count


def _wrong_size(case: Case, rng: Rng) -> None:
    """Make one recorded side of an image too small: the first box leaves the record but fits into the image."""
    _, row = case.pick(rng, "images")
    side = ["height", "width"][rng.integers(2)]
    row[side] -= int(rng.integers(5, 30))
    case.counts["F12", "repaired"] = 1


def _corners(case: Case, _rng: Rng) -> None:
    """Write all boxes of the file as [x1, y1, x2, y2]."""
    for row in case.content["annotations"]:
        x, y, width, height = row["bbox"]
        row["bbox"] = [x, y, x + width, y + height]
    case.refuse("F5")


def _corners_said(case: Case, rng: Rng) -> None:
    _corners(case, rng)
    case.refused, case.options = None, {"xyxy": True}


def _shares(case: Case, _rng: Rng) -> None:
    for row in case.content["annotations"]:
        height, width = SIZES[row["image_id"]]
        x, y, w, h = row["bbox"]
        row["bbox"] = [x / width, y / height, w / width, h / height]
    case.refuse("F6")


def _cut(case: Case, rng: Rng) -> None:
    data = json.dumps(case.content).encode()
    case.data = data[: rng.integers(len(data))]
    case.refuse("F1")


def _no_text(case: Case, rng: Rng) -> None:
    data = bytearray(json.dumps(case.content).encode())
    data[rng.integers(len(data))] = [0xFF, 0xC0, 0x80][rng.integers(3)]
    case.data = bytes(data)
    case.refuse("F1")


def _deep(case: Case, rng: Rng) -> None:
    depth = int(rng.integers(20_000, 100_000))
    deep = "[" * depth + "]" * depth if rng.integers(2) else '{"a":' * depth + "1" + "}" * depth
    case.data = json.dumps({**case.content, "extra": "here"}).replace('"here"', deep).encode()
    case.refuse("F1")


def _missing_list(case: Case, rng: Rng) -> None:
    name = list(case.content)[rng.integers(3)]
    case.content[name] = [None, {}, "x", 7, [None], [[]]][rng.integers(6)]
    case.refuse("F1")


def _folders_in_names(case: Case, rng: Rng) -> None:
    """Write file names as annotation tools do, and set the option that finds such images."""
    for row in case.content["images"]:
        name = row["file_name"]
        odd = ["images/{}", "..\\upload\\1\\{}", "/data/upload/1/{}", "C:\\x\\{}"][rng.integers(4)].format(name)
        row["file_name"] = odd if rng.integers(2) else odd.replace(".png", ".PNG")
    case.options = {"by_base_name": True}


def _bad_file_name(case: Case, rng: Rng) -> None:
    _, row = case.pick(rng, "images")
    row["file_name"] = [None, 7, ["1.png"], True][rng.integers(4)]
    if rng.integers(2):
        del row["file_name"]
    case.refuse("F1")


def _nothing(case: Case, _rng: Rng) -> None:
    case.content["annotations"] = []
    case.objects = []


EDITS: dict[str, Callable[[Case, Rng], None]] = {
    edit.__name__.strip("_"): edit
    for edit in (
        _spell_ids, _bad_reference, _annotations_without_ids_of_their_own, _spell_crowd, _bad_crowd, _mark, _shuffle,
        _further_keys, _bad_box, _text_box, _no_box, _thin_box, _box_over_the_border, _box_outside, _id_twice,
        _bad_name, _near_name, _double, _no_sizes, _spell_sizes, _bad_size, _swapped_sizes, _wrong_size, _corners,
        _corners_said, _shares, _cut, _no_text, _deep, _missing_list, _folders_in_names, _bad_file_name, _nothing,
    )
}  # fmt: skip
