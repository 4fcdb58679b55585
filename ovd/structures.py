"""The data structures that data, model and evaluation exchange.

Boxes are xyxy, in absolute pixels, float32. Letters used in shapes:
B images, P points of all pyramid levels concatenated, D text-image dimensions, C classes, R true boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ovd.extras import optional
from ovd.fault import Fault

if TYPE_CHECKING:
    import supervision

IGNORED = -2
"""Label of a point that the class loss ignores; the background has label -1."""


@dataclass(frozen=True, eq=False)
class Points:
    """Locations of the predictions: the center of every cell of every pyramid level, level by level."""

    centers: Float[Tensor, "P 2"]
    """Centers (x, y) in pixels of the input image."""
    strides: Float[Tensor, " P"]
    """Distances in pixels between neighboring points of the same level."""

    def in_padding(self, sizes: Int[Tensor, "B 2"]) -> Bool[Tensor, "B P"]:
        """Return a mask of the points that lie outside each image, in the padding of its batch.

        Args:
            sizes: heights and widths of the images before padding.
        """
        return self._is_beyond(sizes).any(dim=2)

    def are_unscored(self, sizes: Int[Tensor, "B 2"]) -> Bool[Tensor, "B P"]:
        """Return a mask of the points that yield no box in each image: those in the padding.

        An image of at most half the finest stride in height or width contains no point; there the first row or column
        of the finest level, whose cells cover the image, counts as inside. In training these points stay ignored, since
        no true box contains them.

        Args:
            sizes: as for `in_padding`.
        """
        return (self._is_beyond(sizes) & (self.centers > self.centers.amin(dim=0))).any(dim=2)

    def _is_beyond(self, sizes: Int[Tensor, "B 2"]) -> Bool[Tensor, "B P 2"]:
        """Return whether each point's x, and its y, lie beyond the right and the bottom side of each image."""
        return self.centers >= sizes.flip(1)[:, None]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The detector's output at every point, the same in training and in evaluation."""

    embeddings: Float[Tensor, "B P D"]
    """Class embeddings in the text space, not normalized."""
    boxes: Float[Tensor, "B P 4"]
    """Boxes (xyxy) in pixels of the input image, not clipped to it."""
    quality: Float[Tensor, "B P"]
    """Logits of the box quality: the centerness, or the alignment with task-aligned assignment."""
    dense: Float[Tensor, "B P D"] | None = None
    """Dense CLIP feature, of unit length; only from detectors that combine their scores with CLIP's."""

    def of_images(self, rows: slice) -> "Predictions":
        """Return the predictions of a part of the batch."""
        dense = None if self.dense is None else self.dense[rows]
        return Predictions(self.embeddings[rows], self.boxes[rows], self.quality[rows], dense)


@dataclass(frozen=True, eq=False)
class Targets:
    """Annotations of one image.

    Classes are rows of the data set's vocabulary (0..C-1), never category ids of a file. For an image-text pair they
    are text ids, which start at C (text/pair_texts.py).
    """

    boxes: Float[Tensor, "R 4"]
    classes: Int[Tensor, " R"]
    crowd_boxes: Float[Tensor, "I 4"]
    """Crowd regions; points inside them that match no box are ignored by the loss."""
    negative_classes: Int[Tensor, " N"]
    """Classes verified to be absent (LVIS `neg_category_ids`)."""
    not_exhaustive_classes: Int[Tensor, " E"]
    """Classes that are present, but not with a box for every instance (LVIS `not_exhaustive_category_ids`)."""
    image_texts: Int[Tensor, " T"]
    """Ids of all texts of an image-text pair, with and without a box; empty for an annotated image."""

    @classmethod
    def empty(cls) -> "Targets":
        """Return the targets of an image without annotations."""
        no_boxes, nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        return cls(no_boxes, nothing, no_boxes, nothing, nothing, nothing)

    @classmethod
    def to_device(cls, images: "tuple[Targets, ...]", device: torch.device) -> "tuple[Targets, ...]":
        """Copy the targets of some images to a device, with one copy per field."""
        columns = []
        for field in fields(cls) if images else ():
            parts = [getattr(targets, field.name) for targets in images]
            columns.append(torch.cat(parts).to(device).split([len(part) for part in parts]))
        return tuple(cls(*values) for values in zip(*columns, strict=True))


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one step, padded at the right and bottom with zeros to a common size.

    `sizes` are the heights and widths of the images before padding.
    """

    images: UInt8[Tensor, "B 3 H W"]
    """RGB images, uint8 as loaded; the detector normalizes them."""
    sizes: Int[Tensor, "B 2"]
    targets: tuple[Targets, ...]
    image_ids: tuple[int, ...]
    is_pair: Bool[Tensor, " B"]
    """True for image-text pairs, whose classes are text ids instead of rows of the vocabulary."""
    skipped: tuple[Fault, ...] = ()
    """Faults of the samples that were left out of the batch."""
    repaired: tuple[Fault, ...] = ()
    """Faults of the samples in the batch that were repaired."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Shapes (height, width) that annotated images may be padded to; any shape if empty."""
    padded_pairs: tuple[int, int] = (0, 0)
    """Height and width that the pairs alone are padded to, before they get one size with the annotated images."""

    @classmethod
    def without_pairs(
        cls,
        images: UInt8[Tensor, "B 3 H W"],
        sizes: Int[Tensor, "B 2"],
        targets: tuple[Targets, ...],
        image_ids: tuple[int, ...],
        *,
        skipped: tuple[Fault, ...] = (),
        repaired: tuple[Fault, ...] = (),
    ) -> "Batch":
        """Create a batch of annotated images only."""
        is_pair = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        return cls(images, sizes, targets, image_ids, is_pair, skipped, repaired)

    def of_images(self, rows: slice) -> "Batch":
        """Return a part of the batch, without its `skipped` and `repaired` faults."""
        return Batch(
            images=self.images[rows],
            sizes=self.sizes[rows],
            targets=self.targets[rows],
            image_ids=self.image_ids[rows],
            is_pair=self.is_pair[rows],
        )

    def to(self, device: torch.device) -> "Batch":
        """Move the batch to a device; from page-locked memory the images are copied asynchronously."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            sizes=self.sizes.to(device),
            targets=Targets.to_device(self.targets, device),
            is_pair=self.is_pair.to(device),
        )


@dataclass(frozen=True, eq=False)
class Assignment:
    """The true box, if any, that each point is matched to."""

    matched: Int[Tensor, "B P"]
    """Row of the matched box in the image's `Targets.boxes`, or -1 for background."""
    ignored: Bool[Tensor, "B P"]
    """Mask of the background points that all losses ignore (crowd regions, padding)."""
    unmatched_center: Bool[Tensor, "B P"]
    """Mask of the points in the center region of a true box that are matched to no box; the target of their quality is
    0. With FCOS's rules most of them are on levels for boxes of other sizes."""
    alignment: Float[Tensor, "B P"] | None = None
    """Alignment of both tasks at the matched points, 0 to 1, if the assignment computes it. It then replaces the
    centerness as the target of the quality and as the weight of the box loss."""

    @classmethod
    def cat(cls, parts: "Sequence[Assignment]") -> "Assignment":
        """Concatenate the assignments of at least one part of a batch, along the images."""
        alignments = [part.alignment for part in parts if part.alignment is not None]
        return cls(
            torch.cat([part.matched for part in parts]),
            torch.cat([part.ignored for part in parts]),
            torch.cat([part.unmatched_center for part in parts]),
            torch.cat(alignments) if alignments else None,
        )

    def of_images(self, rows: slice) -> "Assignment":
        alignment = None if self.alignment is None else self.alignment[rows]
        return Assignment(self.matched[rows], self.ignored[rows], self.unmatched_center[rows], alignment)


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections in one image, best first, with boxes in pixels of the original image.

    `len` is the number of boxes; `Detections` without boxes are false.
    """

    boxes: Float[Tensor, "K 4"]
    scores: Float[Tensor, " K"]
    classes: Int[Tensor, " K"]
    """Rows of the query vocabulary."""

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> "Detections":
        """Return the detections of an image in which nothing is found."""
        boxes, scores = torch.zeros(0, 4, dtype=torch.float32), torch.zeros(0, dtype=torch.float32)
        return cls(boxes, scores, torch.zeros(0, dtype=torch.int64))

    @classmethod
    def cat(cls, parts: Sequence["Detections"]) -> "Detections":
        """Concatenate at least one `Detections`, in their order."""
        return cls(
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.classes for part in parts]),
        )

    def take(self, rows: Int[Tensor, " _"] | Bool[Tensor, " N"]) -> "Detections":
        """Select detections by row indices or by a mask."""
        return Detections(self.boxes[rows], self.scores[rows], self.classes[rows])

    def to_torchvision(self) -> dict[str, Tensor]:
        """Convert to the output of torchvision's detectors: `boxes`, `labels` (rows of the vocabulary) and `scores`."""
        return {"boxes": self.boxes, "labels": self.classes, "scores": self.scores}

    def to_supervision(self, names: Sequence[str] | None = None) -> "supervision.Detections":
        """Convert to `supervision.Detections`.

        Args:
            names: class names of the vocabulary, for `data["class_name"]`, which supervision's annotators show.

        Raises:
            ValueError: the package supervision is missing.
        """
        classes = self.classes.numpy()
        return optional("supervision", "interop").Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=classes,
            data={} if names is None else {"class_name": np.array(names, dtype=np.str_)[classes]},
        )

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Convert to COCO results, which pycocotools, FiftyOne and other tools read; boxes are [x, y, width, height].

        Args:
            category_ids: category id of each class of the vocabulary; by default the class's row plus one.
        """
        boxes, scores, classes = self.boxes.tolist(), self.scores.tolist(), self.classes.tolist()
        return [
            {
                "image_id": image_id,
                "category_id": row + 1 if category_ids is None else category_ids[row],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
            }
            for (x0, y0, x1, y1), score, row in zip(boxes, scores, classes, strict=True)
        ]
