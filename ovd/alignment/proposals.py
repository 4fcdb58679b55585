"""Class-agnostic box proposals, from edges without labels or training, or from a trained detector."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from ovd.boxes import clip_boxes
from ovd.inference import Inference
from ovd.model.similarity import best_scores

NMS_IOU = 0.5
CANDIDATES = 1000
"""Maximum number of boxes per image before non-maximum suppression, the best ones."""
CELLS_PER_SMALLEST_BOX = 4
"""Number of cells of the edge map along the side of the smallest box."""
STEPS_PER_OCTAVE = 3
"""Number of sizes of candidate boxes per doubling of the size."""
STEP = 1 / 6
"""Distance between candidate boxes of one size, relative to their side."""
RATIOS = (2 / 3, 1.0, 3 / 2)
"""Ratios of width to height of candidate boxes."""
RING = 0.25
"""Width of the ring around a candidate box, relative to its mean side."""
AREA_EXPONENT = 0.25
"""Exponent of the area that the contrast is multiplied by, since small boxes reach a high contrast by chance."""

MIN_SCORE = 0.25
"""Minimum score of a detector's proposal; the score is the square root of class probability x quality."""


@runtime_checkable
class Proposals(Protocol):
    """A finder of boxes in a batch of images."""

    size_divisor: int
    """Number that the sides of the padded images must be multiples of."""

    def __call__(self, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]) -> list[Float[Tensor, "_ 4"]]:
        """Find the boxes of every image: xyxy in pixels, best first, on the CPU; there may be none.

        Args:
            images: RGB, padded at the right and bottom.
            sizes: height and width before padding.
        """


class EdgeProposals:
    """Boxes with more edges inside than in the ring around them, from a dense grid of candidates.

    An object that is wholly inside a box has all of its outline inside; one that the box cuts through has some of it
    outside. So the contrast is highest for a tight box. (Edge Boxes, Zitnick and Dollar 2014, scores contours that are
    wholly inside; here edges are only counted, not traced.) The result for an image depends only on its pixels.
    """

    size_divisor = 1

    def __init__(self, *, sides_px: tuple[float, float], count: int):
        """
        Args:
            sides_px: smallest and largest mean side of a candidate box (root of the area).
            count: maximum number of boxes per image, the best ones.
        """
        self._smallest_px, self._largest_px = sides_px
        self._count = count

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]) -> list[Float[Tensor, "_ 4"]]:
        unpadded = (image[:, :height, :width] for image, (height, width) in zip(images, sizes.tolist(), strict=True))
        return [self._propose_boxes(image).cpu() for image in unpadded]

    def _propose_boxes(self, image: UInt8[Tensor, "3 H W"]) -> Float[Tensor, "K 4"]:
        height, width = image.shape[1:]
        cell = max(1, round(self._smallest_px / CELLS_PER_SMALLEST_BOX))
        if min(height, width) < cell:
            return torch.zeros(0, 4)
        edges = edge_density(image, cell)
        sides = (self._smallest_px / cell, self._largest_px / cell)
        boxes = candidate_boxes(edges.shape[0], edges.shape[1], sides, image.device)
        contrast = edge_contrast(edges, boxes)
        best = contrast.topk(min(CANDIDATES, len(contrast))).indices
        in_pixels = clip_boxes(cell * boxes[best].float(), torch.tensor([height, width], device=image.device))
        kept = nms(in_pixels, contrast[best], NMS_IOU)
        return in_pixels[kept[: self._count]]


def edge_density(image: UInt8[Tensor, "3 H W"], cell: int) -> Float[Tensor, "h w"]:
    """Compute the mean strength of the edges in cells of `cell` x `cell` pixels.

    A pixel's strength is the sum of its absolute differences to the left and the upper pixel, each in the color channel
    where it is largest.
    """
    pixels = image.float()
    strength = torch.zeros_like(pixels[0])
    strength[:, 1:] += (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().amax(dim=0)
    strength[1:] += (pixels[:, 1:] - pixels[:, :-1]).abs().amax(dim=0)
    return F.avg_pool2d(strength[None], cell, ceil_mode=True, count_include_pad=False)[0]


def candidate_boxes(height: int, width: int, sides: tuple[float, float], device: torch.device) -> Int[Tensor, "M 4"]:
    """Return boxes of several sizes and shapes on a dense grid, xyxy in whole cells of a `height` x `width` map.

    Args:
        sides: smallest and largest mean side of a box, in cells.
    """
    parts = [torch.zeros(0, 4, dtype=torch.int64, device=device)]
    side, largest = sides
    while side <= largest:
        for ratio in RATIOS:
            box_width, box_height = max(1, round(side * ratio**0.5)), max(1, round(side / ratio**0.5))
            if box_width <= width and box_height <= height:
                step = max(1, round(side * STEP))
                x = torch.arange(0, width - box_width + 1, step, device=device)
                y = torch.arange(0, height - box_height + 1, step, device=device)
                parts.append(
                    torch.cartesian_prod(x, y)[:, [0, 1, 0, 1]]
                    + torch.tensor([0, 0, box_width, box_height], device=device)
                )
        side *= 2 ** (1 / STEPS_PER_OCTAVE)
    return torch.cat(parts)


def edge_contrast(edges: Float[Tensor, "h w"], boxes: Int[Tensor, "M 4"]) -> Float[Tensor, " M"]:
    """Compute the mean of the edges in each box minus that in the ring around it, times a power of the box's area."""
    height, width = edges.shape
    ring = ((boxes[:, 2:] - boxes[:, :2]).float().mean(dim=1, keepdim=True) * RING).round().long().clamp(min=1)
    corners = torch.cat([boxes[:, :2] - ring, boxes[:, 2:] + ring], dim=1).clamp(min=0)
    outer = corners.minimum(torch.tensor([width, height, width, height], device=edges.device))
    # Sums over rectangles come from an integral image, in float64 since they are differences of large numbers.
    table = F.pad(edges.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    inside, inner_area = _sum_in(table, boxes), _area(boxes)
    outside, ring_area = _sum_in(table, outer) - inside, (_area(outer) - inner_area).clamp(min=1)
    return ((inside / inner_area - outside / ring_area) * inner_area**AREA_EXPONENT).float()


def _sum_in(table: Float[Tensor, "h w"], boxes: Int[Tensor, "M 4"]) -> Float[Tensor, " M"]:
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]


def _area(boxes: Int[Tensor, "M 4"]) -> Float[Tensor, " M"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).double()


class DetectorProposals:
    """Boxes of a trained detector, whatever their class; a box's score is that of the best class it was trained on."""

    def __init__(self, inference: Inference, text: Float[Tensor, "C D"], *, smallest_px: float, count: int):
        """
        Args:
            inference: the detector and how it is run.
            text: unit rows, one per class that the detector was trained on.
            smallest_px: smallest mean side of a box (root of the area).
            count: maximum number of boxes per image: the best of those that score at least `MIN_SCORE`.
        """
        self.size_divisor = inference.detector.size_divisor
        self._inference = inference
        self._text = text
        self._smallest_px = smallest_px
        self._count = count

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]) -> list[Float[Tensor, "_ 4"]]:
        device = self._inference.device
        images, sizes = images.to(device), sizes.to(device)
        predictions = self._inference.predict(images, sizes)
        classifier = self._inference.detector.classifier(self._text)
        boxes_of_images = clip_boxes(predictions.boxes.float(), sizes[:, None])
        outputs_of_images = zip(boxes_of_images, predictions.embeddings, predictions.quality, strict=True)
        return [
            self._best(boxes, best_scores(embeddings, quality, classifier)).cpu()
            for boxes, embeddings, quality in outputs_of_images
        ]

    def _best(self, boxes: Float[Tensor, "P 4"], scores: Float[Tensor, " P"]) -> Float[Tensor, "K 4"]:
        mean_sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
        is_good = (mean_sides >= self._smallest_px) & (scores >= MIN_SCORE)
        boxes, scores = boxes[is_good], scores[is_good]
        return boxes[nms(boxes, scores, NMS_IOU)[: self._count]]
