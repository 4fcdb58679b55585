"""Write docs/inputs.md: which inputs are read, which are refused, and with which message; every input is tried.

    python tools/inputs_table.py                    # print the page
    python tools/inputs_table.py --output docs/inputs.md

Every row is a file or a call that is made in a temporary folder and passed to the reader that training, evaluation and
tools use. A test compares the page with the output of this script.
"""

import argparse
import contextlib
import gzip
import io
import json
import re
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from ovd.build.detector import build_detector, load_configured_clip
from ovd.build.trained import TrainedDetector
from ovd.choices import DataFormatName
from ovd.cli import error_line, run_tool
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config
from ovd.data.annotations import load_annotations, load_truth
from ovd.data.formats.image_names import check_images_exist
from ovd.data.formats.options import FormatOptions
from ovd.data.images.pixels import as_pixels
from ovd.data.images.read import decode_image
from ovd.data.index import AnnotationIndex
from ovd.data.loading.small_objects import SampleSizes, count_small_objects
from ovd.data.pairs.tar import PairShards
from ovd.data.report import DataReport
from ovd.data.verdict import check_trainable
from ovd.distributed import device_of_rank
from ovd.evaluation.results import Results
from ovd.evaluation.run import build_box_evaluator
from ovd.format_count import format_count
from ovd.predictor import Predictor

TRAINING_SIZE = 64
SIZES = {1: (30, 60), 2: (40, 80), 3: (50, 25), 4: (20, 70), 5: (64, 40), 6: (30, 90)}
"""Height and width of the images of the annotation file, by id."""
INTRODUCTION = """\
# Inputs: what is read or refused, and the message

`python tools/inputs_table.py --output docs/inputs.md` tries each row and writes the message that it prints. Two rules
apply: input with only one possible meaning is read, and every change that affects training is reported.
[data/README.md](../data/README.md) explains the codes.
"""

Row = tuple[str, Callable[[Path], str]]


def annotation_file() -> dict[str, Any]:
    """Return a valid file with two objects per image, the first reaching to 1 px from the lower right corner."""
    boxes = [(image, [w // 2, h // 2, w - w // 2 - 1, h - h // 2 - 1]) for image, (h, w) in SIZES.items()]
    boxes += [(image, [2, 3, 10, 12]) for image in SIZES]
    return {
        "images": [
            {"id": image, "file_name": f"{image}.jpg", "height": height, "width": width}
            for image, (height, width) in SIZES.items()
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 1 + number % 2, "bbox": box, "iscrowd": 0}
            for number, (image, box) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "gull"}, {"id": 2, "name": "red kite"}],
    }


def read_for_training(folder: Path, content: bytes, **options: Any) -> str:
    """Read an annotation file as training does before its first step, and return a summary."""
    for image, (height, width) in SIZES.items():
        Image.new("RGB", (width, height)).save(folder / f"{image}.jpg")
    path = folder / "train.json"
    path.write_bytes(content)
    report = DataReport()
    index = load_annotations(path, folder, format="coco", report=report, options=FormatOptions(**options))
    check_trainable(index, report)
    has_option = not options.get("by_base_name", False)
    num_missing = check_images_exist(path, index.image_files, folder, all_needed=False, has_option=has_option)
    count_small_objects(index, report, SampleSizes(size=TRAINING_SIZE, largest_scale=1))
    return summary(index, report, num_missing)


def summary(index: AnnotationIndex, report: DataReport, num_missing: int = 0) -> str:
    counts = [format_count(len(index), "image"), format_count(len(index.boxes.values), "object")]
    counts += [format_count(len(index.crowd_boxes.values), "crowd")] if len(index.crowd_boxes.values) else []
    counts += [f"{format_count(num_missing, 'image')} missing"] if num_missing else []
    findings = [f"{finding} ({report.first_records()[finding][0]})" for finding in report.counts()]
    return ", ".join(counts) + "".join(f"; {finding}" for finding in findings)


def json_row(what: str, change: Callable[[dict[str, Any]], Any], **options: Any) -> Row:
    def run(folder: Path) -> str:
        content = annotation_file()
        change(content)
        return read_for_training(folder, json.dumps(content).encode(), **options)

    return what, run


def bytes_row(what: str, change: Callable[[bytes], bytes]) -> Row:
    return what, lambda folder: read_for_training(folder, change(json.dumps(annotation_file()).encode()))


def set_all(name: str, /, **values: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change that sets values in every record of a list; a value may be a function of the record."""

    def change(content: dict[str, Any]) -> None:
        for row in content[name]:
            row.update({key: value(row) if callable(value) else value for key, value in values.items()})

    return change


def set_first(name: str, count: int = 1, /, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: set_all("rows", **values)({"rows": content[name][:count]})


def without(name: str, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for row in content[name]:
            for key in keys:
                del row[key]

    return change


def corners(row: dict[str, Any]) -> list[float]:
    x, y, width, height = row["bbox"]
    return [x, y, x + width, y + height]


def shares(row: dict[str, Any]) -> list[float]:
    height, width = SIZES[row["image_id"]]
    return [row["bbox"][0] / width, row["bbox"][1] / height, row["bbox"][2] / width, row["bbox"][3] / height]


def annotation_rows() -> Iterator[Row]:
    yield json_row("a good file", lambda content: None)
    for value in ("1", True, 1.0, "0", False, "yes", 2, None):
        yield json_row(f"`iscrowd` of one object is `{json.dumps(value)}`", set_first("annotations", iscrowd=value))
    yield json_row("every object is a crowd", set_all("annotations", iscrowd=1))
    yield json_row("a file without objects", lambda content: content["annotations"].clear())
    yield json_row("`categories: []` and no object", lambda content: content.update(categories=[], annotations=[]))
    yield json_row("one object is too small at the training size", set_first("annotations", bbox=[2, 3, 1.5, 9]))
    yield json_row("every object is too small", set_all("annotations", bbox=lambda row: [row["id"], 3, 1.2, 1.2]))
    yield json_row("boxes as corners `[x1, y1, x2, y2]`", set_all("annotations", bbox=corners))
    yield json_row("the same with `data.source.xyxy=true`", set_all("annotations", bbox=corners), xyxy=True)
    yield json_row("boxes in fractions of the image, from 0 to 1", set_all("annotations", bbox=shares))
    yield json_row("a box with NaN", set_first("annotations", bbox=[1, 2, float("nan"), 4]))
    yield json_row("width and height of a box as text", set_first("annotations", bbox=[1, 2, "10.0000", "12.0000"]))
    yield json_row("a box with a side under 1 px", set_first("annotations", bbox=[1, 2, 0.5, 9]))
    yield json_row("a box partly outside its image", set_first("annotations", bbox=[50, 2, 30, 9]))
    yield json_row("a box wholly outside its image", set_first("annotations", bbox=[90, 2, 30, 9]))
    for name in ("", "  ", "\ud800"):
        yield json_row(f"a class named {json.dumps(name)}", set_first("categories", name=name))
    for name in ("Red Kite", "red-kite"):
        yield json_row(f"two classes, `{name}` and `red kite`", set_first("categories", name=name))
    yield json_row("Roboflow's parent class, which has no box", with_parent)
    yield json_row("the same object twice", object_twice)
    yield json_row(
        "two image records with the same file",
        lambda content: content["images"].append({**content["images"][0], "id": 99}),
    )


def with_parent(content: dict[str, Any]) -> None:
    set_all("categories", supercategory="birds")(content)
    content["categories"].append({"id": 0, "name": "birds", "supercategory": "none"})


def object_twice(content: dict[str, Any]) -> None:
    content["annotations"].append({**content["annotations"][0], "id": 99})


def id_rows() -> Iterator[Row]:
    yield json_row("ids as `7.0`", set_all("annotations", image_id=lambda row: float(row["image_id"])))
    yield json_row('ids as `"7"`', set_all("images", id=lambda row: str(row["id"])))
    yield json_row('image ids `"1"` and `1` in one file', lambda content: content["images"][1].update(id="1"))
    yield json_row("annotations without ids", without("annotations", "id"))
    yield json_row("annotation ids that restart", set_all("annotations", id=lambda row: row["id"] % 2))
    yield json_row("an object in an unknown image", set_first("annotations", image_id=77))
    for number in (2**60, 2**63):
        yield json_row(f"an id of {number}", set_first("annotations", id=number))
    yield "image ids above 2^53 in an evaluation", evaluate_large_ids
    yield "`neg_category_ids: null`, format `lvis`", read_without_negatives


def evaluate_large_ids(folder: Path) -> str:
    content, shift = annotation_file(), 2**60
    for row in content["images"]:
        row["id"] += shift
    for row in content["annotations"]:
        row["image_id"] += shift
    path = folder / "val.json"
    path.write_text(json.dumps(content))
    truth = load_truth(path, format="coco")
    evaluator = build_box_evaluator(truth, "coco", ())
    scores = np.ones(len(truth.image_ids))
    evaluator.add_results(Results(truth.image_ids, truth.category_ids, truth.boxes_xywh, scores), source="true boxes")
    return f"AP {evaluator.compute()['AP']:.2f} of the true boxes"


def read_without_negatives(folder: Path) -> str:
    content = annotation_file()
    set_all("images", neg_category_ids=None)(content)
    path = folder / "val.json"
    path.write_text(json.dumps(content))
    return f"{len(load_truth(path, format='lvis').images)} images"


def file_rows() -> Iterator[Row]:
    yield bytes_row("UTF-8 with a byte order mark", lambda content: b"\xef\xbb\xbf" + content)
    yield bytes_row("UTF-16", lambda content: content.decode().encode("utf-16"))
    yield bytes_row("a file that was cut off", lambda content: content[:1000])
    yield bytes_row("lists nested 100,000 deep", lambda content: b'{"images": ' + b"[" * 100_000)
    yield bytes_row(
        "a number of 5,000 digits", lambda content: content.replace(b'"id": 1,', b'"id": %s,' % (b"9" * 5000))
    )
    yield json_row("images without height and width", without("images", "height", "width"))
    swap = {"height": lambda row: SIZES[row["id"]][1], "width": lambda row: SIZES[row["id"]][0]}
    yield json_row("height and width of an image swapped", set_first("images", **swap))
    yield json_row("height and width of five images swapped", set_first("images", 5, **swap))
    yield json_row(
        "the same with `data.source.sizes_from_images=true`", set_first("images", 5, **swap), sizes_from_images=True
    )
    names = ("images/{}.jpg", "..\\upload\\1\\{}.jpg", "/data/upload/1/{}.jpg", "{}.JPG", "%3{}.jpg")
    for name in names:
        change = set_all("images", file_name=lambda row, name=name: name.format(row["id"]))
        yield json_row(f"`file_name: {name.format(1)}`", change)
        if "%" not in name:
            yield json_row("the same with `data.source.by_base_name=true`", change, by_base_name=True)
    yield json_row("one training image missing", set_first("images", file_name="gone.jpg"))
    yield "one validation image missing, before training starts", look_for_validation_images
    yield json_row("all images missing", set_all("images", file_name=lambda row: f"gone{row['id']}.jpg"))


def look_for_validation_images(folder: Path) -> str:
    for number in range(99):
        (folder / f"{number}.jpg").touch()
    files = [f"{number}.jpg" for number in range(100)]
    return str(check_images_exist(folder / "val.json", files, folder, all_needed=True, has_option=True))


def layout_row(what: str, format: DataFormatName, files: dict[str, str], annotations: str, **options: Any) -> Row:
    """Return the row of a data set that is read as training reads it.

    Args:
        files: texts by file name; a name that ends in .jpg gives an image of 30 x 20 px, without the text.
    """

    def run(folder: Path) -> str:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".jpg"):
                Image.new("RGB", (30, 20)).save(path)
            else:
                path.write_text(text)
        report = DataReport()
        images = folder / "JPEGImages" if format == "voc" else None
        chosen = FormatOptions(**options)
        return summary(
            load_annotations(folder / annotations, images, format=format, report=report, options=chosen), report
        )

    return what, run


def xml(file_name: str, left: int = 3) -> str:
    corners = {"xmin": left, "ymin": 4, "xmax": 20, "ymax": 15}
    box = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners.items())
    size = "<size><width>30</width><height>20</height></size>"
    found = f"<object><name>gull</name><bndbox>{box}</bndbox></object>"
    return f"<annotation><filename>{file_name}</filename>{size}{found}</annotation>"


def voc_rows() -> Iterator[Row]:
    images = dict.fromkeys(("JPEGImages/1.jpg", "JPEGImages/2.jpg"), "")
    good = {**images, "Annotations/1.xml": xml("1.jpg"), "Annotations/2.xml": xml("2.jpg")}
    of_list = partial(layout_row, format="voc", annotations="ImageSets/Main/train.txt")
    of_folder = partial(layout_row, format="voc", annotations="Annotations")
    listed = {**good, "ImageSets/Main/train.txt": "2\n1\n"}
    yield of_list("a list of names", files=listed)
    yield of_list("a list whose lines end with CR only", files=good | {"ImageSets/Main/train.txt": "2\r1\r"})
    yield of_list("a list with a name twice", files=good | {"ImageSets/Main/train.txt": "2\n1\n2\n"})
    yield of_list("a list with a name that has no file", files=good | {"ImageSets/Main/train.txt": "2\n3\n"})
    yield of_folder("a folder of XML files", files=good)
    below = {"JPEGImages/a/1.jpg": "", "JPEGImages/2.jpg": "", "Annotations/a/1.xml": xml("1.jpg")}
    yield of_folder("a folder with XML files in folders below it", files=below | {"Annotations/2.xml": xml("2.jpg")})
    yield of_folder("`1.xml` with `<filename>old.jpg`", files=good | {"Annotations/1.xml": xml("old.jpg")})
    yield of_folder("`1.xml` with `<filename>2.jpg`, as in `2.xml`", files=good | {"Annotations/1.xml": xml("2.jpg")})
    from_0 = good | {"Annotations/1.xml": xml("1.jpg", left=0)}
    yield of_folder("a box with a corner at 0", files=from_0)
    yield of_folder("the same with `data.source.zero_based=true`", files=from_0, zero_based=True)


def yolo_rows() -> Iterator[Row]:
    row = "0 0.5 0.5 0.3 0.4\n"
    good = {"images/train/1.jpg": "", "images/val/2.jpg": "", "labels/train/1.txt": row, "labels/val/2.txt": row}
    names = "names: [gull, red kite]\n"
    described = partial(layout_row, format="yolo", annotations="data.yaml")
    yield described("`train: images/train`", files=good | {"data.yaml": f"train: images/train\n{names}"})
    for path in ("../images/train", "/content/set/images/train", "C:\\set\\images\\train", "/content/train/photos"):
        yield described(f"`train: {path}`", files=good | {"data.yaml": f"train: {path}\n{names}"})
    moved = "train: /content/train/images\nval: /content/val/images\n"
    yield described(
        "`train: /content/train/images`, `val: /content/val/images`", files=good | {"data.yaml": moved + names}
    )
    cvat = {
        "obj.data": "train = data/train.txt\nnames = data/obj.names\n",
        "obj.names": "gull\nred kite\n",
        "train.txt": "data/images/train/1.jpg\n",
    }
    yield layout_row("Darknet's `obj.data`, as CVAT exports it", "yolo", good | cvat, "obj.data")
    yield layout_row("a folder with `data.yaml`", "yolo", good | {"data.yaml": f"train: images/train\n{names}"}, ".")
    yield layout_row(
        "a folder with `labels/classes.txt`", "yolo", good | {"labels/classes.txt": "gull\nred kite\n"}, "."
    )
    yield layout_row("a folder with neither", "yolo", good, ".")
    start = f"train: images/train\n{names}"
    for what, line in (
        ("a class that has no name", "7 0.5 0.5 0.3 0.4"),
        ("pixels", "0 15 10 9 8"),
        ("a confidence", "0 0.5 0.5 0.3 0.4 0.9"),
        ("a polygon", "0 0.1 0.1 0.6 0.1 0.6 0.5"),
    ):
        yield described(f"a row with {what}", files=good | {"data.yaml": start, "labels/train/1.txt": line})


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_header(side: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""))
    packed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def image_row(what: str, content: Callable[[], bytes], *, with_range: bool = False) -> Row:
    def run(folder: Path) -> str:
        path = folder / "image.jpg"
        path.write_bytes(content())
        decoded = decode_image(path, expected_size=(20, 30))
        values = f" from {decoded.pixels.min()} to {decoded.pixels.max()}" if with_range else ""
        return f"RGB{values}" + "".join(f"; {fault.code} repaired ({fault.message})" for fault in decoded.repairs())

    return what, run


def image_rows() -> Iterator[Row]:
    pixels = np.linspace(0, 255, 20 * 30 * 3).astype(np.uint8).reshape(20, 30, 3)
    image = Image.fromarray(pixels)
    for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM"):
        yield image_row(format, partial(encoded, image, format))
    frames = {"save_all": True, "append_images": [Image.new("RGB", (30, 20))]}
    yield image_row("GIF with two frames", lambda: encoded(image, "GIF", **frames))
    for bits in (10, 12, 16):
        gray = np.linspace(0, 2**bits - 1, 600).astype(np.uint16).reshape(20, 30)
        content = encoded(Image.fromarray(gray), "PNG")
        yield image_row(f"gray PNG, {bits} of 16 bits used", partial(bytes, content), with_range=True)
    for format in (".png", ".tif"):
        colors = np.linspace(0, (1 << 12) - 1, 20 * 30 * 3).astype(np.uint16).reshape(20, 30, 3)
        stored = cv2.imencode(format, colors)[1].tobytes()
        yield image_row(f"color {format} file, 12 of 16 bits used", partial(bytes, stored), with_range=True)
    yield image_row("TIFF of floats", lambda: encoded(Image.fromarray(np.ones((20, 30), np.float32)), "TIFF"))
    yield image_row("JPEG without its end marker, otherwise whole", lambda: encoded(image, "JPEG")[:-2])
    yield image_row("JPEG that was cut off earlier", lambda: encoded(image, "JPEG")[:-60])
    yield image_row("image of another size than annotated", lambda: encoded(Image.new("RGB", (31, 20)), "PNG"))
    yield image_row("an empty file", lambda: b"")
    yield image_row("an HTML page", lambda: b"<html>404</html>")
    yield image_row("image of 10,000 x 10,000 pixels", lambda: png_header(10_000))


def without_folder(run: Callable[[], str], _folder: Path) -> str:
    return run()


def memory_rows() -> Iterator[Row]:
    ramp = np.linspace(0, 1, 20 * 30 * 3, dtype=np.float32).reshape(20, 30, 3)
    images: dict[str, Any] = {
        "PIL image": Image.new("RGB", (30, 20), "white"),
        "PIL image with transparency": Image.new("RGBA", (30, 20)),
        "array (H W 3) of bytes": (ramp * 255).astype(np.uint8),
        "tensor (3 H W)": torch.from_numpy(ramp).permute(2, 0, 1),
        "tensor (H W 3)": torch.from_numpy(ramp),
        "gray array (H W)": (ramp[..., 0] * 255).astype(np.uint8),
        "array (H W 4)": np.full((20, 30, 4), 255, np.uint8),
        "floats from 0 to 1": ramp,
        "floats from 0 to 255": ramp * 255,
        "floats from -2 to 2": ramp * 4 - 2,
        "floats from 0 to 1000": ramp * 1000,
        "an array without pixels": np.zeros((0, 30, 3), np.uint8),
        "a batch of images (B 3 H W)": np.zeros((2, 3, 20, 30), np.uint8),
        "an array of booleans": np.zeros((20, 30), bool),
    }

    def run(image: Any) -> str:
        pixels = as_pixels(image)
        return f"RGB of {pixels.shape[0]} x {pixels.shape[1]} from {pixels.min()} to {pixels.max()}"

    for what, image in images.items():
        yield what, partial(without_folder, partial(run, image))
    yield from predictor_rows()
    yield "`train.device=cdua`", partial(without_folder, lambda: str(device_of_rank("cdua")))


def predictor_rows() -> Iterator[Row]:
    """Yield calls of an untrained detector."""
    torch.manual_seed(0)
    sections = {
        "detector": {"channels": 32, "num_convs": 1},
        "train": {"steps": 1, "device": "cpu"},
        "data": {"size": 64},
    }
    config = parse_config({"output": "untrained", **sections}, TrainConfig, "a small config")
    clip = load_configured_clip(config.clip)
    predictor = Predictor(TrainedDetector(build_detector(config, clip).eval(), config, clip, ()))
    image = Image.new("RGB", (30, 20), "white")

    def run(names: Any) -> str:
        found = predictor(image, names)
        return f"asked for {1 + int(found.classes.max())} name" if len(found.classes) else "nothing found"

    for names in ("keyboard", ["keyboard"], [], ["keyboard", " "], ""):
        yield f"`predictor(image, {json.dumps(names)})`", partial(without_folder, partial(run, names))


def shard_row(what: str, members: list[str], *, pack: Callable[[bytes], bytes] = bytes, name: str = "00000.tar") -> Row:
    def run(folder: Path) -> str:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for member in members:
                content = b'{"caption": "a gull"}' if member.endswith("json") else b"a gull"
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        (folder / name).write_bytes(pack(file.getvalue()))
        shards = PairShards(folder)
        keys = ", ".join(f"`{shards.key(row)}`: {shards.caption(row)}" for row in range(len(shards)))
        return f"{format_count(len(shards), 'pair')} ({keys}); {shards.describe_rejected()}"

    return what, run


def shard_rows() -> Iterator[Row]:
    good = ["a.jpg", "a.txt", "b.jpg", "b.txt"]
    yield shard_row("`a.jpg a.txt b.jpg b.txt`", good)
    yield shard_row("`a.1.jpg a.1.txt`", ["a.1.jpg", "a.1.txt"])
    yield shard_row("`a.1.jpg a.1.txt` beside `a.jpg a.txt`", [*good, "a.1.jpg", "a.1.txt"])
    yield shard_row("`a.seg.png` beside `a.jpg a.txt`", [*good, "a.seg.png"])
    yield shard_row("caption in `a.caption`", ["a.jpg", "a.caption"])
    yield shard_row("caption in `a.json`", ["a.jpg", "a.json"])
    yield shard_row("an image without a caption", [*good, "c.jpg"])
    yield shard_row("`c.json` without an image: a failed download", [*good, "c.json"])
    yield shard_row("a shard where most downloads failed", [*good, *(f"c{number}.json" for number in range(8))])
    yield shard_row("a shard with a member twice", [*good, "a.png"])
    yield shard_row("a compressed shard named `00000.tar.gz`", good, pack=gzip.compress, name="00000.tar.gz")
    yield shard_row("a compressed shard named `00000.tar`", good, pack=gzip.compress)
    yield shard_row("a shard that was cut off", good, pack=lambda content: content[:1700])
    yield "shards 00000 and 00002 without a manifest", read_shards_with_a_gap


def read_shards_with_a_gap(folder: Path) -> str:
    shard_row("", ["a.jpg", "a.txt"])[1](folder)
    return shard_row("", ["b.jpg", "b.txt"], name="00002.tar")[1](folder)


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    "Objects, boxes and classes of a JSON file": annotation_rows,
    "Ids": id_rows,
    "The file, its images and their sizes": file_rows,
    "Pascal VOC": voc_rows,
    "YOLO": yolo_rows,
    "Image files": image_rows,
    "`Predictor`'s images in memory, and devices": memory_rows,
    "Tar shards": shard_rows,
}


def outcome(run: Callable[[Path], str]) -> tuple[str, str]:
    """Return `read` or `refused` for an input, and the message."""
    words = io.StringIO()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(words):
        try:
            kind, text = "read", run(Path(name))
        except ValueError as error:
            kind, text = "refused", error_line(error)
        warnings = "" if kind == "refused" else "".join(
            f"; {line}" for line in words.getvalue().splitlines() if line.startswith("warning[F13]")
        )  # fmt: skip
        text = (text + warnings).replace(f"{name}/", "").replace(name, "FOLDER")
    return kind, re.sub(r"9{50,}", "999...", text).replace("|", "\\|").replace("<", "&lt;")


def page() -> str:
    parts = [INTRODUCTION]
    for title, rows in SECTIONS.items():
        parts += [f"\n## {title}\n\n", "| input | | message |\n|---|---|---|\n"]
        for what, run in rows():
            kind, text = outcome(run)
            parts.append(f"| {what} | {kind} | {text} |\n".replace("\ud800", "\\ud800"))
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file to write instead of printing")
    arguments = parser.parse_args()
    if arguments.output is None:
        print(page(), end="")
    else:
        arguments.output.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    run_tool(main)
