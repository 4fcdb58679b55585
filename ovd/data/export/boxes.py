"""Export of boxes in the formats that annotation tools and trainers read, the inverse of the readers.

| format | files | boxes | scores |
|---|---|---|---|
| coco | one JSON file | [x, y, width, height], two decimals | `score` beside each box |
| label_studio | JSON tasks, and the labeling setup in NAME.config.xml | percent of the image | `score` of each box |
| yolo | a folder: data.yaml, labels/, images/ | center and sides in fractions, six decimals | scores.csv |
| voc | a folder: Annotations/, ImageSets/Main/train.txt, class_names.txt | whole pixels, counted from 1 | `<score>` |

Files and folders appear complete or not at all, and existing ones are never replaced.
"""

import os
import posixpath
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ovd.choices import ExportFormatName
from ovd.data.export.coco import coco_content
from ovd.data.export.label_studio import LOCAL_FILES, label_studio_setup, label_studio_tasks
from ovd.data.export.labeled_set import LabeledSet
from ovd.data.export.voc import write_voc
from ovd.data.export.yolo import write_yolo
from ovd.data.images.files import is_drawn, is_image_name
from ovd.files import atomic_write, refuse_existing, write_json
from ovd.format_count import format_count

SMALLEST_EXPORTED_PX = 2.0
"""Smallest side of an exported box in pixels. Code that makes a `LabeledSet` leaves out smaller boxes, since after
rounding readers may find them under 1 px."""
_JOINERS = re.compile("[\u200c\u200d]")
"""Zero-width characters of Persian, Indian and other scripts."""
_NOT_IN_XML = re.compile(r"[\x00-\x1f\ud800-\udfff\ufffe\uffff]")
"""Control characters, lone surrogates (which represent bytes that are not UTF-8), and noncharacters. XML allows tabs
and line ends, but readers change them."""


def check_names(names: Sequence[str]) -> None:
    """Check that class names can be written in every format.

    Raises:
        ValueError: there is no name, or one is blank, repeated, or has a character that cannot be printed.
    """
    if not names:
        raise ValueError("give at least one class name")
    before = set[str]()
    for number, name in enumerate(names, start=1):
        if not name.strip() or not _JOINERS.sub("", name).isprintable():
            raise ValueError(
                f"class name {number} is {name!r}, which is blank or has characters that cannot be printed"
            )
        if name in before:
            raise ValueError(f"the class name {name!r} is given twice")
        before.add(name)


def check_files(files: Sequence[str], format: ExportFormatName) -> None:
    """Check that image files with these names can be written in a format, and are found by its readers.

    JSON has escapes for any name; readers of folders recognize images by their suffix.

    Raises:
        ValueError: some names cannot be written, or are not found.
    """
    if not is_folder(format):
        return
    unread = [file for file in files if not is_image_name(posixpath.basename(file)) or is_drawn(Path(file))]
    if unread:
        raise ValueError(
            f"readers of {format} would ignore {len(unread):,} of {format_count(len(files), 'image')}: the names lack "
            "an image suffix, begin with a dot or end as those of pictures drawn by ovd detect; the first is "
            f"{unread[0]!r}; rename them, or use --to coco"
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
                f"voc cannot {verb} the names of {len(faulty):,} of {format_count(len(files), 'image')}, {why}; "
                f"the first is {faulty[0]!r}; rename them, or use another format (--to coco or yolo)"
            )


def is_folder(format: ExportFormatName) -> bool:
    """Return whether the format is a folder of files."""
    return format in ("yolo", "voc")


def outputs_of(output: Path, format: ExportFormatName) -> list[Path]:
    """Return the paths that `export_boxes` writes, the output first."""
    return [output, *([output.with_suffix(".config.xml")] if format == "label_studio" else [])]


def export_boxes(
    labeled: LabeledSet,
    output: Path,
    format: ExportFormatName,
    *,
    source: str,
    copy_images: bool = False,
    image_url: str = LOCAL_FILES,
) -> None:
    """Write a labeled set in a format.

    Args:
        output: path of the file, or of the folder for `yolo` and `voc`.
        source: name of the run or program that made the boxes; Label Studio shows it as the model version.
        copy_images: `yolo`: copy images instead of linking to them.
        image_url: `label_studio`: prefix of an image's name in its URL.

    Raises:
        ValueError: the output exists, or a name cannot be written.
        OSError: the output cannot be written; for `yolo` also if links cannot be created.
    """
    check_names(labeled.names)
    check_files([image.file for image in labeled.images], format)
    for path in outputs_of(output, format):
        refuse_existing(path)
    output.parent.mkdir(parents=True, exist_ok=True)
    match format:
        case "coco":
            write_json(output, coco_content(labeled), indent=None)
        case "label_studio":
            write_json(output, label_studio_tasks(labeled, source=source, image_url=image_url), indent=None)
            with atomic_write(outputs_of(output, format)[1]) as file:
                file.write(label_studio_setup(labeled.names))
        case "yolo":
            _whole_folder(output, lambda folder: write_yolo(labeled, folder, copy_images=copy_images))
        case "voc":
            _whole_folder(output, lambda folder: write_voc(labeled, folder))


def _whole_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name, and rename it once it is complete."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        write(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary)
        raise
