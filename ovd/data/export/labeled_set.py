"""Images with boxes and class names, the input of all export formats."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovd.shapes import Float32, Float64, Int64


@dataclass(frozen=True)
class LabeledImage:
    """An image and its boxes: xyxy in pixels, inside the image, in any order."""

    file: str
    """Path relative to the set's folder, with `/`."""
    height: int
    width: int
    boxes: Float32[np.ndarray, "K 4"]
    classes: Int64[np.ndarray, " K"]
    """Rows of the set's `names`."""
    scores: Float32[np.ndarray, " K"]


@dataclass(frozen=True)
class LabeledSet:
    """Images with boxes, their folder and the class names."""

    root: Path
    names: tuple[str, ...]
    images: tuple[LabeledImage, ...]

    @property
    def num_boxes(self) -> int:
        return sum(len(image.boxes) for image in self.images)


def rows_of(
    boxes: Float64[np.ndarray, "K 4"], image: LabeledImage
) -> list[tuple[tuple[float, float, float, float], int, float]]:
    """Return box, class row and score, rounded to four decimals, of each object."""
    scores = image.scores.astype(np.float64).round(4).tolist()
    return list(zip(map(tuple, boxes.tolist()), image.classes.tolist(), scores, strict=True))
