"""The objects of the world that its federated annotation files leave out, kept in files of their own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ovd.data.report import DataError
from ovd.data.truth import Truth


def hidden_file(annotations: Path) -> Path | None:
    """The file with the left-out objects of one of the world's annotation files, `hidden_val.json` beside
    `lvis_val.json`; None for any other file."""
    path = annotations.with_name(annotations.name.replace("lvis_", "hidden_", 1))
    return path if annotations.name.startswith("lvis_") and path.is_file() else None


def with_hidden_boxes(truth: Truth) -> Truth | None:
    """The truth in which every object of every class has a box, no longer federated.

    Args:
        truth: of an annotation file in LVIS format.

    Returns:
        None where the left-out objects are not known: for every file but the world's.

    Raises:
        DataError: F1 the hidden file is not whole; F3 it is about other images or classes.
    """
    path = hidden_file(truth.path)
    if path is None:
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        image_ids = np.array([row["image_id"] for row in rows], np.int64)
        category_ids = np.array([row["category_id"] for row in rows], np.int64)
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        areas = np.array([row["area"] for row in rows], np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("F1", f"{path}: not a whole file of hidden boxes ({error!r}); draw the world again") from error
    known_images = np.isin(image_ids, truth.ids_of_images)
    known_categories = np.isin(category_ids, truth.ids_of_categories)
    if not (known_images & known_categories).all():
        raise DataError("F3", f"{path}: has boxes of images or classes that {truth.path} does not have")
    return replace(
        truth,
        is_federated=False,
        images=tuple(
            replace(image, negative_category_ids=(), not_exhaustive_category_ids=()) for image in truth.images
        ),
        image_ids=np.concatenate([truth.image_ids, image_ids]),
        category_ids=np.concatenate([truth.category_ids, category_ids]),
        boxes_xywh=np.concatenate([truth.boxes_xywh, boxes]),
        areas_px=np.concatenate([truth.areas_px, areas]),
        crowd=np.concatenate([truth.crowd, np.zeros(len(image_ids), bool)]),
    )
