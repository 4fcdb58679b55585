"""The detections in a picture as a JSON document in COCO's format."""

from collections.abc import Sequence
from typing import Any

from ovd.data.coco_annotation import coco_annotation
from ovd.data.loading.buckets import Shape
from ovd.structures import Detections
from ovd.visualize.palette import class_color

_FILE_NAME_LENGTH = 200


def coco_document(
    found: Detections, names: Sequence[str], *, shape: Shape, file_name: str, info: dict[str, Any]
) -> dict[str, Any]:
    """Return a document with COCO's `images`, `categories` and `annotations`, each annotation with its score.

    Categories have a `color`, as in COCO's panoptic annotations; a name has the same color in all pictures.

    Args:
        found: boxes in pixels of the picture; `classes` are positions in `names`.
        shape: height and width of the picture.
        file_name: the sender's name of the picture, of which only the part after the last slash is kept.
        info: information about the detector and this answer.
    """
    height, width = shape
    rows = zip(found.classes.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)
    return {
        "info": info,
        "images": [{"id": 1, "file_name": base_name(file_name), "width": width, "height": height}],
        "categories": [
            {"id": position + 1, "name": name, "color": list(class_color(name))} for position, name in enumerate(names)
        ],
        "annotations": [
            coco_annotation(number, 1, row + 1, box, score=round(score, 5))
            for number, (row, box, score) in enumerate(rows, start=1)
        ],
    }


def base_name(file_name: str) -> str:
    """Return a file name without folders and unprintable characters."""
    base = file_name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in base if letter.isprintable())[:_FILE_NAME_LENGTH]
