"""Boxes of images in the formats that annotation tools and trainers read: the inverse of the readers.

| format | files | boxes | scores |
|---|---|---|---|
| coco | one JSON file | [x, y, width, height], two decimals | `score` beside each box |
| label_studio | JSON tasks, and the labelling setup in NAME.config.xml | percent of the image | `score` of each box |
| yolo | a folder: data.yaml, labels/, images/ | centre and sides in fractions, six decimals | scores.csv |
| voc | a folder: Annotations/, ImageSets/Main/train.txt, class_names.txt | whole pixels that count from 1 | `<score>` |

What is written appears whole or not at all, and nothing that exists is replaced.
"""

import csv
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
import yaml

from ovd.choices import ExportFormatName
from ovd.data.coco_annotation import coco_annotation
from ovd.data.images.files import is_drawn, is_image_name
from ovd.files import atomic_write, refuse_existing, write_json
from ovd.shapes import Float32, Float64, Int64

SMALLEST_EXPORTED_PX = 2.0
"""Smaller boxes are left out by whoever makes a `LabelledSet`: once rounded, readers may find them under 1 px."""
LOCAL_FILES = "/data/local-files/?d="
"""What Label Studio calls files in its own local storage."""
_JOINERS = re.compile("[\u200c\u200d]")
"""Characters of Persian, Indian and other scripts that have no width."""
_NOT_IN_XML = re.compile(r"[\x00-\x1f\ud800-\udfff\ufffe\uffff]")
"""Control characters, halves of characters (which stand for bytes that are not UTF-8), and noncharacters. XML may have
tabs and line ends, but readers change them."""


@dataclass(frozen=True)
class LabelledImage:
    """An image and its boxes: xyxy in pixels, inside the image, in any order."""

    file: str
    """Relative to the set's folder, with `/`."""
    height: int
    width: int
    boxes: Float32[np.ndarray, "K 4"]
    classes: Int64[np.ndarray, " K"]
    """Rows of the set's names."""
    scores: Float32[np.ndarray, " K"]


@dataclass(frozen=True)
class LabelledSet:
    """Images with boxes of some classes."""

    root: Path
    names: tuple[str, ...]
    images: tuple[LabelledImage, ...]

    @property
    def num_boxes(self) -> int:
        return sum(len(image.boxes) for image in self.images)


def check_names(names: Sequence[str]) -> None:
    """Check that class names can be written in every format.

    Raises:
        ValueError: none, a blank one, one twice, or one with a character that cannot be printed.
    """
    if not names:
        raise ValueError("give at least one class name")
    before = set[str]()
    for number, name in enumerate(names, start=1):
        if not name.strip() or not _JOINERS.sub("", name).isprintable():
            raise ValueError(f"class name {number} is {name!r}: blank, or with characters that cannot be printed")
        if name in before:
            raise ValueError(f"the class name {name!r} is given twice")
        before.add(name)


def check_files(files: Sequence[str], format: ExportFormatName) -> None:
    """Check that image files of these names can be written in a format, and are found by its readers. JSON has escapes
    for any name; readers of folders go by endings.

    Raises:
        ValueError: some cannot.
    """
    if not is_folder(format):
        return
    unread = [file for file in files if not is_image_name(posixpath.basename(file)) or is_drawn(Path(file))]
    if unread:
        raise ValueError(
            f"readers of {format} pass over {len(unread):,} of {len(files):,} images, which are not named as images, "
            f"are hidden or were drawn by ovd detect, the first {unread[0]!r}; rename them, or take coco"
        )
    if format != "voc":
        return
    spaced = [file for file in files if (stem := os.path.splitext(file)[0]) != stem.strip()]
    unwritable = [file for file in files if _NOT_IN_XML.search(file)]
    for verb, faulty, why in (
        ("list", spaced, "which begin or end with a space"),
        ("hold", unwritable, "with control characters or bytes that are not UTF-8"),
    ):
        if faulty:
            raise ValueError(
                f"voc cannot {verb} the names of {len(faulty):,} of {len(files):,} images, {why}, the first "
                f"{faulty[0]!r}; rename them, or take another format (coco, yolo)"
            )


def is_folder(format: ExportFormatName) -> bool:
    """Whether the format is a folder of files."""
    return format in ("yolo", "voc")


def outputs_of(output: Path, format: ExportFormatName) -> list[Path]:
    """What `export_boxes` writes: the output first."""
    return [output, *([output.with_suffix(".config.xml")] if format == "label_studio" else [])]


def export_boxes(
    labelled: LabelledSet,
    output: Path,
    format: ExportFormatName,
    *,
    source: str,
    copy_images: bool = False,
    image_url: str = LOCAL_FILES,
) -> None:
    """Write a set.

    Args:
        output: the file, or the folder for `yolo` and `voc`.
        source: what made the boxes; Label Studio shows it as the version of the model.
        copy_images: yolo: copy images instead of linking to them.
        image_url: label_studio: what stands before an image's name in its address.

    Raises:
        ValueError: the output exists, or a name cannot be written.
        OSError: it cannot be written; for yolo also that links cannot be made here.
    """
    check_names(labelled.names)
    check_files([image.file for image in labelled.images], format)
    for path in outputs_of(output, format):
        refuse_existing(path)
    output.parent.mkdir(parents=True, exist_ok=True)
    match format:
        case "coco":
            write_json(output, coco_content(labelled), indent=None)
        case "label_studio":
            write_json(output, label_studio_tasks(labelled, source=source, image_url=image_url), indent=None)
            with atomic_write(outputs_of(output, format)[1]) as file:
                file.write(label_studio_setup(labelled.names))
        case "yolo":
            _whole_folder(output, lambda folder: _write_yolo(labelled, folder, copy_images=copy_images))
        case "voc":
            _whole_folder(output, lambda folder: _write_voc(labelled, folder))


def coco_content(labelled: LabelledSet) -> dict[str, Any]:
    """COCO's form. Ids count from 1, and each box has a `segmentation` without parts, which CVAT needs."""
    annotations = list[dict[str, Any]]()
    for image_id, image in enumerate(labelled.images, start=1):
        for box, name, score in _rows(image.boxes.astype(np.float64), image):
            number = len(annotations) + 1
            annotations.append(coco_annotation(number, image_id, name + 1, box, segmentation=[], score=score))
    return {
        "info": {"description": "boxes of a detector, with their scores"},
        "licenses": [],
        "images": [
            {"id": number, "file_name": image.file, "height": image.height, "width": image.width}
            for number, image in enumerate(labelled.images, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": row, "name": name} for row, name in enumerate(labelled.names, start=1)],
    }


def label_studio_tasks(labelled: LabelledSet, *, source: str, image_url: str = LOCAL_FILES) -> list[dict[str, Any]]:
    """Label Studio's tasks with predictions: boxes in per cent of the image's sides. A task's score is that of its
    least sure box, so that sorting by it brings up what needs a look."""
    tasks = []
    for image in labelled.images:
        sides = np.array([image.width, image.height] * 2, np.float64)
        percent = (100 * image.boxes.astype(np.float64) / sides).round(6)
        result = [
            {
                "id": f"box-{number}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "value": {
                    "x": x0,
                    "y": y0,
                    "width": round(x1 - x0, 6),
                    "height": round(y1 - y0, 6),
                    "rotation": 0,
                    "rectanglelabels": [labelled.names[name]],
                },
                "score": score,
            }
            for number, ((x0, y0, x1, y1), name, score) in enumerate(_rows(percent, image), start=1)
        ]
        lowest = {"score": round(float(image.scores.min()), 4)} if result else {}
        prediction = {"model_version": source, **lowest, "result": result}
        tasks.append({"data": {"image": image_url + quote(os.fsencode(image.file))}, "predictions": [prediction]})
    return tasks


def label_studio_setup(names: Sequence[str]) -> str:
    """The labelling setup that the tasks need."""
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image")
    labels = SubElement(view, "RectangleLabels", name="label", toName="image")
    for name in names:
        SubElement(labels, "Label", value=name)
    return _xml(view)


def _rows(
    boxes: Float64[np.ndarray, "K 4"], image: LabelledImage
) -> list[tuple[tuple[float, float, float, float], int, float]]:
    """Box, class row and score of each object."""
    scores = image.scores.astype(np.float64).round(4).tolist()
    return list(zip(map(tuple, boxes.tolist()), image.classes.tolist(), scores, strict=True))


def _whole_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder under another name, and rename it once it is complete."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        write(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _write_yolo(labelled: LabelledSet, folder: Path, *, copy_images: bool) -> None:
    """data.yaml, labels/, and images/ with links to the images, or copies: readers look for labels beside them."""
    files = _flat([image.file for image in labelled.images])
    for part in ("images", "labels"):
        (folder / part).mkdir()
    # surrogateescape: a name that is not UTF-8 is written with its own bytes.
    with (folder / "scores.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as scores_file:
        table = csv.writer(scores_file, lineterminator="\n")
        table.writerow(["labels", "line", "class", "score"])
        for image, file in zip(labelled.images, files, strict=True):
            link, labels = folder / "images" / file, (folder / "labels" / file).with_suffix(".txt")
            _place(labelled.root / image.file, link, copy=copy_images)
            boxes = image.boxes.astype(np.float64) / ([image.width, image.height] * 2)
            centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            lines = []
            for numbers, name, score in _rows(np.concatenate([centers, sides], axis=1), image):
                lines.append(f"{name} " + " ".join(f"{number:.6f}" for number in numbers) + "\n")
                table.writerow([str(labels.relative_to(folder)), len(lines), labelled.names[name], score])
            labels.write_text("".join(lines), encoding="utf-8")
    content = {"train": "images", "val": "images", "nc": len(labelled.names), "names": dict(enumerate(labelled.names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")


def _place(image: Path, link: Path, *, copy: bool) -> None:
    if copy:
        shutil.copyfile(image, link)
        return
    try:
        link.symlink_to(image.absolute())
    except OSError as error:
        raise OSError(f"{link}: cannot link to {image} ({error}); --copy-images copies images instead") from error


def _write_voc(labelled: LabelledSet, folder: Path) -> None:
    """An XML file for each image."""
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    files = [image.file for image in labelled.images]
    # A reader looks for the image of the XML file's own name first: it must not be another image.
    others = {os.path.splitext(entry.name)[0] for entry in os.scandir(labelled.root) if is_image_name(entry.name)}
    stems = [os.path.splitext(file)[0] for file in _flat(files, avoid=others)]
    for image, stem in zip(labelled.images, stems, strict=True):
        root = Element("annotation")
        SubElement(root, "filename").text = image.file
        size = SubElement(root, "size")
        for side, value in (("width", image.width), ("height", image.height), ("depth", 3)):
            SubElement(size, side).text = str(value)
        corners = image.boxes.astype(np.float64).round()
        for (x0, y0, x1, y1), name, score in _rows(corners, image):
            item = SubElement(root, "object")
            SubElement(item, "name").text = labelled.names[name]
            SubElement(item, "difficult").text = "0"
            SubElement(item, "score").text = str(score)
            box = SubElement(item, "bndbox")
            # VOC's first pixel is 1, and the last one belongs to the box.
            for corner, pixel in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
                SubElement(box, corner).text = str(int(pixel))
        (folder / "Annotations" / f"{stem}.xml").write_text(_xml(root), encoding="utf-8")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in labelled.names), encoding="utf-8")


def _flat(files: Sequence[str], avoid: Collection[str] = ()) -> list[str]:
    """Names for one folder, none hidden, each with another stem: a/b.jpg becomes a__b.jpg, and b.png beside b.jpg
    b_2.png.

    Args:
        avoid: stems that no file may have but that of its own name.
    """
    taken, names = set[str](), []
    for file in files:
        stem, suffix = os.path.splitext(file.replace("/", "__").lstrip("."))
        own = os.path.splitext(file)[0]
        number, name = 1, stem
        while name in taken or (name != own and name in avoid):
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        names.append(name + suffix)
    return names


def _xml(root: Element) -> str:
    indent(root)
    return tostring(root, encoding="unicode") + "\n"
