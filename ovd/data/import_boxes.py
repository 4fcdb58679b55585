"""Conversion of annotation tools' exports to one COCO JSON file; no input file is copied or changed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ovd.choices import ImportFormatName
from ovd.data.coco_annotation import coco_annotation
from ovd.data.formats.box_csv import read_box_csv
from ovd.data.formats.cvat import read_cvat
from ovd.data.formats.image_names import check_images_exist, which_exist
from ovd.data.formats.image_sizes import with_real_sizes
from ovd.data.formats.labelme import read_labelme
from ovd.data.formats.open_images import read_open_images
from ovd.data.formats.options import NO_OPTIONS, FormatOptions
from ovd.data.formats.supported import FORMATS, DataFormat, check_options
from ovd.data.formats.table import AnnotationTable, ReadRequest, available_part, checked_areas, clean_boxes, with_images
from ovd.data.formats.via import read_via
from ovd.data.report import DataReport
from ovd.files import make_parent_folder, refuse_existing, write_json

ROBOFLOW_NAME = "_annotations.coco.json"


_OF_NAMED_IMAGES = frozenset({"by_base_name", "sizes_from_images"})
_IMPORTS: dict[ImportFormatName, DataFormat] = {
    "coco": FORMATS["coco"],
    "voc": FORMATS["voc"],
    "yolo": FORMATS["yolo"],
    "labelme": DataFormat(read_labelme, options=_OF_NAMED_IMAGES, is_coco_json=False),
    "cvat": DataFormat(read_cvat, options=_OF_NAMED_IMAGES, is_coco_json=False),
    "csv": DataFormat(read_box_csv, options=_OF_NAMED_IMAGES, is_coco_json=False),
    "via": DataFormat(read_via, options=_OF_NAMED_IMAGES | {"attribute", "class_names"}, is_coco_json=False),
    "open_images": DataFormat(read_open_images, options=frozenset({"class_names"}), is_coco_json=False),
}


@dataclass(frozen=True)
class ImportedBoxes:
    """A data set in COCO format."""

    content: dict[str, list[dict[str, Any]]]
    images_root: Path
    """Folder that `file_name` is relative to."""


def import_boxes(
    annotations: Path,
    images: Path | None,
    format: ImportFormatName,
    report: DataReport,
    *,
    options: FormatOptions = NO_OPTIONS,
    crowds_as_objects: bool = False,
) -> ImportedBoxes:
    """Read a whole data set and return clean records, as training would use them.

    Boxes are clamped to their image, boxes with a side under 1 px are left out, missing image sizes are filled in,
    missing images are left out, and every id refers to an existing image or category.

    Args:
        annotations: file or folder; for format `coco` also a Roboflow folder, with the images beside the file.
        images: image folder, if the annotations do not name it.
        report: counts changed and left-out records.
        crowds_as_objects: whether crowd regions become objects; CVAT exports masks as crowd regions.

    Raises:
        DataError, ValueError: as raised by the reader of the format; F8 too many images are missing.
    """
    entry = _IMPORTS[format]
    # Mask areas are part of a truth, and only JSON files have them.
    request = ReadRequest(annotations, images, options, index=True, truth=entry.is_coco_json, skips_images=True)
    check_options(request, format, _IMPORTS)
    if entry.is_coco_json and annotations.is_dir():
        request = replace(request, annotations=annotations / ROBOFLOW_NAME, images=images or annotations)
    table = available_part(with_real_sizes(entry.read(request, report), report), report)
    if crowds_as_objects:
        table = replace(table, is_crowd=np.zeros_like(table.is_crowd))
    assert table.image_sizes is not None
    assert table.image_files is not None
    if table.images_root is None:
        raise ValueError(f"{annotations}: give the folder of images (--images)")
    has_option = "by_base_name" in entry.options and not options.by_base_name
    check_images_exist(table.path, table.image_files, table.images_root, all_needed=False, has_option=has_option)
    are_there = np.array(which_exist(table.image_files, table.images_root), dtype=bool)
    for row in np.flatnonzero(~are_there).tolist():
        report.count_skipped("F8", f"{table.images_root / table.image_files[row]}: file is missing")
    report.count_skipped_with_images(int((~are_there[table.image_of_object]).sum()))
    return ImportedBoxes(_content(with_images(table, are_there), report), table.images_root)


def write_boxes(path: Path, imported: ImportedBoxes) -> None:
    """Write the records; the file appears complete or not at all.

    Raises:
        ValueError: the file exists, or its folder cannot be made or written to.
    """
    refuse_existing(path)
    make_parent_folder(path)
    write_json(path, imported.content, indent=None)


def _content(table: AnnotationTable, report: DataReport) -> dict[str, list[dict[str, Any]]]:
    assert table.image_sizes is not None
    assert table.image_files is not None
    boxes, is_kept = clean_boxes(table, table.image_sizes[table.image_of_object], report)
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64)
    areas = [None] * int(is_kept.sum())
    if table.areas_px is not None:
        areas = np.minimum(checked_areas(table), box_areas)[is_kept].tolist()
    category_ids = np.array([category.id for category in table.categories], np.int64)
    rows = zip(
        table.image_ids[table.image_of_object[is_kept]].tolist(),
        category_ids[table.class_of_object[is_kept]].tolist(),
        boxes[is_kept].tolist(),
        areas,
        table.is_crowd[is_kept].astype(int).tolist(),
        strict=True,
    )
    images = zip(table.image_ids.tolist(), table.image_files, table.image_sizes.tolist(), strict=True)
    return {
        "images": [
            {"id": image_id, "file_name": file, "height": height, "width": width}
            for image_id, file, (height, width) in images
        ],
        "annotations": [
            coco_annotation(number, image_id, category_id, box, area_px=area, crowd=crowd)
            for number, (image_id, category_id, box, area, crowd) in enumerate(rows, start=1)
        ],
        "categories": [
            {"id": category.id, "name": category.name, **({"synonyms": category.synonyms} if category.synonyms else {})}
            for category in table.categories
        ],
    }
