"""Selection of the classes that a training step scores, and of those that count for each image.

A federated data set (LVIS, arXiv:1908.03195) annotates each image for a few classes only, so a class without boxes in
an image may be absent or merely unannotated. There are three rules:

- `strict`: a class counts for an image iff it has boxes there or was verified to be absent.
- `sampled`: every sampled class counts (federated loss, arXiv:2103.07461).
- `all`: the data set is fully annotated (COCO), so every class counts.

Under the first two, a class that is not exhaustively annotated in an image does not count at its unmatched points. Nor
does a text in the image of its own image-text pair, since the object may be there without a box.
"""

from typing import assert_never

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd.choices import NegativeRule
from ovd.structures import Targets

SAMPLING_POWER = 0.5
"""Exponent of the sampling: a class's probability is proportional to (number of training images) ** this."""
NUM_NEAREST_CLASSES = 3
"""Number of nearest classes that a text of an image-text pair may mean."""


def required_classes(targets: tuple[Targets, ...], *, negatives: NegativeRule) -> Int[Tensor, " L"]:
    """Return the classes that a batch requires: those with a box in it and, under `strict`, its verified negatives."""
    required = [image.classes for image in targets]
    if negatives == "strict":
        required += [image.negative_classes for image in targets]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *required]).unique()


def sample_class_ids(
    required: Int[Tensor, " L"],
    image_counts: Int[Tensor, " C"],
    *,
    negatives: NegativeRule,
    sampled_classes: int,
    excluded: Bool[Tensor, " C"] | None = None,
    generator: torch.Generator,
) -> Int[Tensor, " K"]:
    """Sample the classes that one step scores for all of its images: sorted, each once.

    These are the required classes and `sampled_classes` more, drawn without replacement with probability proportional
    to (number of training images) ** `SAMPLING_POWER`; classes without training images are never drawn. Under `strict`
    a drawn class would count nowhere, so nothing is drawn. Under `all` the whole vocabulary is scored. There is always
    at least one class.

    Args:
        required: `required_classes` of the batch, on all ranks together.
        image_counts: number of training images of each class of the vocabulary.
        excluded: classes that are not scored, required or not; none by default.
        generator: random number generator on the device of `image_counts` and `required`.
    """
    if excluded is None:
        excluded = torch.zeros_like(image_counts, dtype=torch.bool)
    if negatives == "all":
        return (~excluded).nonzero().squeeze(1)
    wanted = torch.zeros_like(excluded)
    wanted[required] = True
    wanted &= ~excluded
    if negatives != "strict":
        drawable = ~wanted & ~excluded & (image_counts > 0)
        num_drawn = min(sampled_classes, int(drawable.sum()))
        if num_drawn > 0:
            weights = torch.where(drawable, image_counts.double() ** SAMPLING_POWER, 0)
            wanted[torch.multinomial(weights, num_drawn, replacement=False, generator=generator)] = True
    if not wanted.any():  # a batch without objects, and nothing to draw: one row, which `strict` masks out
        wanted[torch.where(excluded, -1, image_counts).argmax()] = True
    return wanted.nonzero().squeeze(1)


def class_mask(
    targets: tuple[Targets, ...], class_ids: Int[Tensor, " K"], *, negatives: NegativeRule
) -> Bool[Tensor, "B K"]:
    """Return whether each class counts at the points of an image that are not matched to it.

    At points matched to a class, it always counts.
    """
    mask = torch.zeros(len(targets), len(class_ids), dtype=torch.bool, device=class_ids.device)
    for row, image in enumerate(targets):
        mask[row] = _image_mask(image, class_ids, negatives)
    return mask


def text_mask(
    targets: tuple[Targets, ...], texts: Float[Tensor, "M D"], class_rows: Float[Tensor, "C D"]
) -> Bool[Tensor, "B M"]:
    """Return whether each text of an image-text pair counts as a negative of each annotated image.

    It counts if none of the `NUM_NEAREST_CLASSES` nearest ones has a box in the image, or may have objects without a
    box there.

    Args:
        texts, class_rows: unit rows of the texts, and of the vocabulary that the targets' classes are from.
    """
    nearest = (texts @ class_rows.T).topk(min(NUM_NEAREST_CLASSES, len(class_rows)), dim=1).indices
    mask = torch.ones(len(targets), len(texts), dtype=torch.bool)
    for row, image in enumerate(targets):
        may_be_there = torch.cat([image.classes, image.not_exhaustive_classes])
        mask[row] = ~torch.isin(nearest, may_be_there).any(dim=1)
    return mask


def _image_mask(image: Targets, class_ids: Int[Tensor, " K"], negatives: NegativeRule) -> Bool[Tensor, " K"]:
    not_exhaustive = torch.isin(class_ids, torch.cat([image.not_exhaustive_classes, image.image_texts]))
    match negatives:
        case "strict":
            verified = torch.cat([image.classes, image.negative_classes])
            return torch.isin(class_ids, verified) & ~not_exhaustive
        case "sampled":
            return ~not_exhaustive
        case "all":
            return torch.ones_like(class_ids, dtype=torch.bool)
        case _:
            assert_never(negatives)
