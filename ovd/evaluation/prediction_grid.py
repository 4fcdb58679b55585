"""predictions.jpg: what was found in some images of an evaluation, and what was missed.

The same images are drawn in every evaluation of a data set, so that two runs, or two steps of one, can be compared.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou

from ovd.data.images import ImageError, read_image
from ovd.data.index import AnnotationIndex
from ovd.data.truth import Truth
from ovd.evaluation.measures import Measures
from ovd.files import whole_file
from ovd.structures import Detections
from ovd.visualize import GRID_COLUMNS, GRID_PX, choose_shown, draw_detections, grid

NAME = "predictions.jpg"
NUM_IMAGES = 12
RIGHT_IOU = 0.5


def write_prediction_grid(measures: Measures, index: AnnotationIndex, folder: Path) -> None:
    """Draw the detections above the thresholds at which the decisions were judged; nothing if no image can be read.

    Args:
        index: where the images are.
    """
    truth, reported = measures.truth, measures.decisions.verdicts.reported
    class_ids = [category.id for category in truth.categories]
    names = [category.name.replace("_", " ") for category in truth.categories]
    pictures = []
    for row in chosen_rows(truth, index):
        record = index.record(row)
        try:
            image = read_image(record.path, expected_size=(record.height, record.width))
        except ImageError:
            continue
        of_image = reported.take(reported.image_ids == record.id)
        order = np.argsort(-of_image.scores, kind="stable")
        found = Detections(
            box_convert(torch.from_numpy(of_image.boxes_xywh[order]).float(), "xywh", "xyxy"),
            torch.from_numpy(of_image.scores[order]).float(),
            torch.from_numpy(np.searchsorted(class_ids, of_image.category_ids[order])),
        )
        shown = choose_shown(found, -torch.inf)
        missed = missed_objects(truth, record.id, shown)
        pictures.append(draw_detections(image, shown, names, missed=missed, largest_px=GRID_PX))
    if pictures:
        with whole_file(folder / NAME, "wb") as file:
            grid(pictures, columns=GRID_COLUMNS).save(file, "JPEG", quality=90)


def chosen_rows(truth: Truth, index: AnnotationIndex) -> list[int]:
    """Rows of the index of at most `NUM_IMAGES` images, spread evenly over those with a true box."""
    judged = np.isin(index.image_ids, truth.image_ids[~truth.crowd])
    some = np.flatnonzero(judged)
    return some[np.unique(np.linspace(0, len(some) - 1, NUM_IMAGES).astype(int))].tolist() if len(some) else []


def missed_objects(truth: Truth, image_id: int, shown: Detections) -> Detections:
    """The true objects of an image that none of these detections is right about (IoU 0.5, same class), scored 0.

    Args:
        shown: their classes are rows of the truth's categories.
    """
    rows = (truth.image_ids == image_id) & ~truth.crowd
    boxes = box_convert(torch.from_numpy(truth.boxes_xywh[rows]).float(), "xywh", "xyxy")
    ids = [category.id for category in truth.categories]
    classes = torch.from_numpy(np.searchsorted(ids, truth.category_ids[rows]))
    is_right = (box_iou(boxes, shown.boxes) >= RIGHT_IOU) & (classes[:, None] == shown.classes)
    missed = ~is_right.any(dim=1)
    return Detections(boxes[missed], torch.zeros(int(missed.sum())), classes[missed])
