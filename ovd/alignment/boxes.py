"""Boxes of a training step: random ones, and proposals if there are any."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovd.config.alignment import AlignBoxes


def random_boxes(
    size: tuple[int, int], count: int, *, sides_px: tuple[float, float], aspect: float, generator: np.random.Generator
) -> Float[Tensor, "count 4"]:
    """Draw boxes uniformly in place and log-uniformly in size, xyxy in pixels, all inside an image.

    Args:
        size: height and width of the image.
        sides_px: smallest and largest mean side (root of the area); sides are cut to the image if it is smaller.
        aspect: shapes vary log-uniformly from width = height / aspect to width = height * aspect.
    """
    height, width = size
    sides = np.exp(generator.uniform(np.log(sides_px[0]), np.log(sides_px[1]), count))
    stretch = np.exp(generator.uniform(-1, 1, count) * np.log(aspect) / 2)
    extents = np.stack([np.minimum(sides * stretch, width), np.minimum(sides / stretch, height)], axis=1)
    corners = generator.random((count, 2)) * (np.array([width, height]) - extents)
    boxes = np.concatenate([corners, corners + extents], axis=1)
    borders = np.array([width, height, width, height], dtype=np.float32)  # rounding may exceed them
    return torch.from_numpy(np.minimum(boxes.astype(np.float32), borders))


def sample_boxes(
    sizes: Int[Tensor, "B 2"],
    image_ids: Sequence[int],
    proposals: Sequence[Float[Tensor, "_ 4"]],
    options: AlignBoxes,
    *,
    sides_px: tuple[float, float],
    seeds: tuple[int, int],
) -> list[Float[Tensor, "K 4"]]:
    """Return K = `random` + `proposals` boxes for every image; missing proposals are replaced by random boxes.

    Random boxes depend only on the seeds and the image's id, so they are the same on any number of ranks.

    Args:
        sizes: heights and widths; images beyond those of `image_ids` are blank and get no boxes.
        proposals: proposals of every image, best first.
        sides_px: mean sides of random boxes, see `random_boxes`.
        seeds: seeds of the run and of the step.
    """
    result = []
    for (height, width), image_id, found in zip(sizes.tolist(), image_ids, proposals, strict=False):
        found = found[: options.proposals]
        generator = np.random.default_rng([*seeds, image_id])
        drawn = random_boxes(
            (height, width), options.random + options.proposals - len(found),
            sides_px=sides_px, aspect=options.aspect, generator=generator,
        )  # fmt: skip
        result.append(torch.cat([found, drawn]))
    return result + [torch.zeros(0, 4)] * (len(sizes) - len(image_ids))
