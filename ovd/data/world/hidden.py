"""Objects that the world's federated annotation files leave out, stored in separate files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ovd.data.report import DataError
from ovd.data.truth import Truth


def hidden_file(annotations: Path) -> Path | None:
    """Return the file with the objects that one of the world's annotation files leaves out; None for any other file.

    For `lvis_val.json`, it is `hidden_val.json` in the same folder.
    """
    path = annotations.with_name(annotations.name.replace("lvis_", "hidden_", 1))
    return path if annotations.name.startswith("lvis_") and path.is_file() else None


def with_hidden_boxes(truth: Truth) -> Truth | None:
    """Add the hidden boxes to a ground truth, so that every object of every class has a box.

    Args:
        truth: ground truth of an annotation file in LVIS format.

    Returns:
        The complete ground truth, no longer federated; None for files other than the world's, whose left-out objects
        are unknown.

    Raises:
        DataError: F1 the hidden file is incomplete; F3 it has boxes of other images or classes.
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
        raise DataError("F1", f"{path}: not a valid file of hidden boxes ({error!r}); draw the world again") from error
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
