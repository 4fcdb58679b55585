"""predictions.jpg: detections and missed objects in some images of an evaluation.

The same images are drawn in every evaluation of a data set, so that two runs, or two steps of a run, can be compared.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_convert

from ovd.data.images.image_file import ImageError
from ovd.data.images.read import read_image
from ovd.data.index import AnnotationIndex
from ovd.data.truth import Truth
from ovd.evaluation.groups import rare_rows
from ovd.evaluation.measures import Measures
from ovd.shapes import Float64, Int64
from ovd.structures import Detections
from ovd.visualize.boxes import LEGEND, LEGEND_WITH_RARE, choose_shown, draw_detections, write_grid

PREDICTION_GRID = "predictions.jpg"
NUM_IMAGES = 12


def write_prediction_grid(measures: Measures, index: AnnotationIndex, folder: Path) -> None:
    """Draw the detections at or above the thresholds of the decisions, and the true boxes that were missed.

    Where detections overlap, only the best is drawn. Rare classes are marked. Nothing is written if no image can be
    read.

    Args:
        index: annotations with the paths of the images.
    """
    verdicts, truth = measures.decisions.verdicts, measures.truth
    names = [category.name.replace("_", " ") for category in truth.categories]
    rare = rare_rows(truth.categories)
    missed_rows = verdicts.true_rows[~verdicts.is_found]
    pictures = []
    for row in choose_rows(truth, index):
        record = index.record(row)
        try:
            image = read_image(record.path, expected_size=(record.height, record.width))
        except ImageError:
            continue
        reported = verdicts.reported.take(verdicts.reported.image_ids == record.id)
        best_first = reported.take(np.argsort(-reported.scores, kind="stable"))
        found = to_detections(best_first.boxes_xywh, best_first.scores, truth.category_rows(best_first.category_ids))
        here = missed_rows[truth.image_ids[missed_rows] == record.id]
        boxes, classes = truth.boxes_xywh[here], truth.category_rows(truth.category_ids[here])
        missed = to_detections(boxes, np.zeros(len(here)), classes)
        shown = choose_shown(found, -torch.inf)
        pictures.append(draw_detections(image, shown, names, missed=missed, rare=rare, in_grid=True))
    if pictures:
        write_grid(pictures, folder / PREDICTION_GRID, LEGEND_WITH_RARE if rare else LEGEND)


def to_detections(
    boxes_xywh: Float64[np.ndarray, "K 4"], scores: Float64[np.ndarray, " K"], rows: Int64[np.ndarray, " K"]
) -> Detections:
    """Convert boxes of a truth or of results for drawing, without boxes of a negative side, which files may contain."""
    sound = (boxes_xywh[:, 2:] >= 0).all(axis=1)
    boxes = box_convert(torch.from_numpy(boxes_xywh[sound]).float(), "xywh", "xyxy")
    return Detections(boxes, torch.from_numpy(scores[sound]).float(), torch.from_numpy(rows[sound]))


def choose_rows(truth: Truth, index: AnnotationIndex) -> list[int]:
    """Choose the rows of at most `NUM_IMAGES` images of the index, evenly spread over those with a true box."""
    judged = np.isin(index.image_ids, truth.image_ids[~truth.crowd])
    some = np.flatnonzero(judged)
    return some[np.unique(np.linspace(0, len(some) - 1, NUM_IMAGES).astype(int))].tolist() if len(some) else []
