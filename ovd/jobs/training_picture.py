"""Draw training_images.jpg of a run folder: the first batch, augmented, with the boxes that are trained on.

It shows labels in another box format, a wrong class order or too strong an augmentation within the first minute.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image

from ovd.structures import Batch, Detections
from ovd.visualize.boxes import draw_detections, write_grid
from ovd.warn import warn

TRAINING_PICTURE = "training_images.jpg"
MAX_IMAGES = 16
MAX_NAME = 40
"""Maximum number of characters drawn of a name, since captions are long."""


def draw_first_batch(
    batches_from: Callable[[int], Iterator[Batch]], folder: Path, names_of: Callable[[list[int]], list[str]]
) -> Callable[[int], Iterator[Batch]]:
    """Wrap `batches_from` so that, from step 0 on, the first batch with an image is drawn when it is taken.

    Args:
        names_of: function that returns the names of classes, or the texts of pairs, for their ids.
    """
    drawn = False

    def batches(start: int) -> Iterator[Batch]:
        nonlocal drawn
        for batch in batches_from(start):
            if start == 0 and not drawn and batch.image_ids:
                drawn = True
                try:
                    write_grid(draw_batch(batch, names_of), folder / TRAINING_PICTURE)
                except OSError as error:
                    warn(f"{folder / TRAINING_PICTURE} cannot be written ({error})")
            yield batch

    return batches


def draw_batch(batch: Batch, names_of: Callable[[list[int]], list[str]]) -> list[Image.Image]:
    """Draw the images of a batch without their padding, with the boxes and names that they are trained on."""
    shown = range(min(MAX_IMAGES, len(batch.image_ids)))
    ids = sorted({number for row in shown for number in batch.targets[row].classes.tolist()})
    names = {number: _shortened(name) for number, name in zip(ids, names_of(ids), strict=True)}
    pictures = []
    for row in shown:
        height, width = batch.sizes[row].tolist()
        targets = batch.targets[row]
        labels = Detections(targets.boxes, torch.ones(len(targets.boxes)), targets.classes)
        image = batch.images[row, :, :height, :width].permute(1, 2, 0).contiguous().numpy()
        pictures.append(draw_detections(image, labels, names, with_scores=False, in_grid=True))
    return pictures


def _shortened(name: str) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."
