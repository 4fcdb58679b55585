"""Export of boxes as predictions in Label Studio tasks."""

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from ovd.data.export.labeled_set import LabeledSet, rows_of
from ovd.data.export.xml_text import xml_text

LOCAL_FILES = "/data/local-files/?d="
"""URL prefix of files in Label Studio's local storage."""


def label_studio_tasks(labeled: LabeledSet, *, source: str, image_url: str = LOCAL_FILES) -> list[dict[str, Any]]:
    """Return Label Studio tasks with predictions, with boxes in percent of the image's sides.

    The score of a task is the lowest score of its boxes, so that sorting by it brings up the tasks to review.
    """
    tasks = []
    for image in labeled.images:
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
                    "rectanglelabels": [labeled.names[name]],
                },
                "score": score,
            }
            for number, ((x0, y0, x1, y1), name, score) in enumerate(rows_of(percent, image), start=1)
        ]
        lowest = {"score": round(float(image.scores.min()), 4)} if result else {}
        prediction = {"model_version": source, **lowest, "result": result}
        tasks.append({"data": {"image": image_url + quote(os.fsencode(image.file))}, "predictions": [prediction]})
    return tasks


def label_studio_setup(names: Sequence[str]) -> str:
    """Return the labeling setup that the tasks need, as XML."""
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image")
    labels = SubElement(view, "RectangleLabels", name="label", toName="image")
    for name in names:
        SubElement(labels, "Label", value=name)
    return xml_text(view)
