"""Reader of Objects365 (v1 and v2): COCO's format, with the known faults of its files corrected."""

from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from ovd.data.formats.coco_json import read_coco_json
from ovd.data.formats.table import AnnotationTable, ReadRequest
from ovd.data.report import DataReport

NAME_FIXES = {
    "Moniter/TV": "Monitor/TV",
    "Bakset": "Basket",
    "Dinning Table": "Dining Table",
    "Tea pot": "Teapot",
    "Extention Cord": "Extension Cord",
    "Hotair ballon": "Hot air balloon",
    "Hamimelon": "Hami melon",
    "Mushroon": "Mushroom",
    "Tape Measur/ Ruler": "Tape Measure/ Ruler",
    "Campel": "Camel",
    "Meat ball": "Meatball",
    "Buttefly": "Butterfly",
    "Table Teniis paddle": "Table Tennis paddle",
}
"""Corrected class names, by the misspelled names of the files."""

NOT_RELEASED = frozenset(
    {
        "objects365_v1_00162953.jpg",
        "objects365_v1_00175464.jpg",
        "objects365_v1_00320532.jpg",
        "objects365_v1_00320534.jpg",
        "objects365_v1_00712985.jpg",
        "objects365_v2_00904061.jpg",
        "objects365_v2_00908726.jpg",
        "objects365_v2_01339848.jpg",
        "objects365_v2_01524152.jpg",
        "objects365_v2_02037230.jpg",
        "objects365_v2_02081009.jpg",
    }
)
"""Images of the training annotations that no archive contains."""


def read_objects365(request: ReadRequest, report: DataReport) -> AnnotationTable:
    """Read an annotation file as `read_coco_json` does, and correct class names and image paths.

    An index leaves out the images that were never released; `report` counts them (F8).
    """
    table = read_coco_json(replace(request, file_of=image_file), report, federated=False)
    categories = tuple(replace(category, name=class_name(category.name)) for category in table.categories)
    if table.image_files is None:
        return replace(table, categories=categories)
    released = np.array([is_released(file) for file in table.image_files], dtype=bool)
    is_available = released if table.is_available is None else released & table.is_available
    for row in np.flatnonzero(~released).tolist():
        report.count_repaired(
            "F8",
            f"{table.path}: image {table.image_ids[row]}, {table.image_files[row]}: left out; no archive contains it",
        )
    return replace(
        table,
        categories=categories,
        is_available=None if is_available.all() else is_available,
    )


def class_name(name: str) -> str:
    return NAME_FIXES.get(name.strip(), name.strip())


def image_file(file_name: str) -> str:
    """Return the path of an image relative to the folder of its split.

    v2 files have "images/v1/patch8/objects365_v1_00420917.jpg", and the archives unpack to "patch8/..."; v1 files have
    the bare name, and the archives have no folders.
    """
    path = PurePosixPath(file_name)
    return "/".join(path.parts[-2:]) if path.parent.name.startswith("patch") else path.name


def is_released(file_name: str) -> bool:
    return PurePosixPath(file_name).name not in NOT_RELEASED
