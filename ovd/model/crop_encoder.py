"""CLIP's embeddings of crops of boxes, for region distillation and second looks (postprocess.py).

The dense feature that a detector names boxes by is less precise than CLIP's embedding of a tight crop (CLIPSelf,
arXiv:2310.01403, section 3).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovd.model.backbone import Backbone
from ovd.model.crops import square_crops
from ovd.model.normalization import Normalization
from ovd.model.similarity import unit_embeddings
from ovd.precision import Compute, on_device

MAX_CROPS_PER_BATCH = 256
"""Maximum number of crops in one call of the backbone."""
MAX_PIXELS_PER_BATCH = MAX_CROPS_PER_BATCH * 224**2
"""Maximum number of pixels of these crops, unless one crop has more."""


@dataclass(frozen=True)
class View:
    """Size of one of a box's crops."""

    side_px: int
    """Side of the crop in pixels."""
    context: float
    """Side of the square that is cut out, as a multiple of the box's longer side (`square_crops`)."""


class CropEncoder:
    """Frozen image side of the original CLIP, which embeds crops of boxes.

    It is not a part of the detector: neither an optimizer nor a checkpoint contains its weights.
    """

    def __init__(
        self,
        backbone: Backbone,
        normalization: Normalization,
        *,
        views: Sequence[View],
        compute: Compute,
    ):
        """
        Args:
            backbone: CLIP's image side, which is frozen and moved to the device here. It shares no weights with a
                detector.
            normalization: normalizes the backbone's input; moved to the device.
            views: the crops of each box, at least one, whose embeddings are averaged.
            compute: device and precision of the embeddings.
        """
        self.backbone = compute.freeze(backbone)
        self.normalization = normalization.to(compute.device)
        self.views = tuple(views)
        self._compute = compute

    @torch.no_grad()
    def __call__(
        self, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"], boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> tuple[Float[Tensor, "_ D"], ...]:
        """Compute unit embeddings of the crops of each image's boxes; the crops of all images are encoded together.

        Outside an image, and in its padding, a crop has CLIP's mean color.

        Args:
            images: RGB images, padded at the right and bottom.
            sizes: height and width of each image before padding.
            boxes: each image's boxes, xyxy in pixels; an image may have none.
        """
        if sum(map(len, boxes)) == 0:
            return tuple(torch.zeros(0, 0, device=images.device) for _ in boxes)
        with on_device(self._compute.device):
            groups = [
                (rows, self.normalization(images[rows, :, :height, :width]))
                for (height, width), rows in _rows_by_size(sizes).items()
            ]
            embeddings = torch.stack([self._encode_view(groups, boxes, view) for view in self.views])
        return unit_embeddings(embeddings.mean(dim=0)).split([len(own) for own in boxes])

    def _encode_view(
        self,
        groups: Sequence[tuple[list[int], Float[Tensor, "_ 3 _ _"]]],
        boxes: Sequence[Float[Tensor, "_ 4"]],
        view: View,
    ) -> Float[Tensor, "K D"]:
        """Compute unit embeddings of one crop of each box.

        Args:
            groups: rows and pixels of the images of each size.
        """
        at_a_time = min(MAX_CROPS_PER_BATCH, max(1, MAX_PIXELS_PER_BATCH // view.side_px**2))
        embeddings = []
        for some in _parts(boxes, at_a_time):
            crops = _crops(groups, some, view).contiguous(memory_format=self._compute.frozen_memory_format)
            with self._compute.autocast():
                embeddings.append(self.backbone.encode(crops))
        return unit_embeddings(torch.cat(embeddings))


def _parts(boxes: Sequence[Float[Tensor, "_ 4"]], count: int) -> Iterator[list[Float[Tensor, "_ 4"]]]:
    """Yield the boxes of all images in parts of at most `count` boxes, each with an entry for every image."""
    ends = list(accumulate(map(len, boxes)))
    for first in range(0, ends[-1], count):
        yield [
            own[max(0, first - end + len(own)) : max(0, first + count - end + len(own))]
            for own, end in zip(boxes, ends, strict=True)
        ]


def _crops(
    groups: Sequence[tuple[list[int], Float[Tensor, "_ 3 _ _"]]], boxes: Sequence[Float[Tensor, "_ 4"]], view: View
) -> Float[Tensor, "M 3 side side"]:
    """Return one crop of each box, in the order of the images."""
    of_image: dict[int, Tensor] = {}
    for rows, pixels in groups:
        own = [boxes[row] for row in rows]
        crops = square_crops(pixels, own, view.side_px, context=view.context)
        of_image |= dict(zip(rows, crops.split(list(map(len, own))), strict=True))
    return torch.cat([of_image[row] for row in range(len(boxes))])


def _rows_by_size(sizes: Int[Tensor, "B 2"]) -> dict[tuple[int, int], list[int]]:
    """Return the rows of the images of each height and width, which are cropped together."""
    rows: dict[tuple[int, int], list[int]] = {}
    for row, (height, width) in enumerate(sizes.tolist()):
        rows.setdefault((height, width), []).append(row)
    return rows
