"""Which classes a training step scores, and which of them count for which image.

A federated data set (LVIS, arXiv:1908.03195) annotates each image for a few classes only, so a class without boxes in
an image may be absent or merely unannotated. Three rules:

- `strict`: a class counts for an image iff it has boxes there or was verified to be absent.
- `sampled`: every sampled class counts (federated loss, arXiv:2103.07461).
- `all`: the data set is fully annotated (COCO), every class counts.

Under the first two, unmatched points of a class that is not exhaustively annotated in an image do not count.
"""

from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ovd.structures import Targets

Rule = Literal["sampled", "strict", "all"]


def needed_classes(targets: tuple[Targets, ...], *, rule: Rule) -> Int[Tensor, " L"]:
    """The classes that a batch cannot do without: those with a box in it, under `strict` its verified negatives."""
    needed = [image.classes for image in targets]
    if rule == "strict":
        needed += [image.negative_classes for image in targets]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *needed]).unique()


def sample_class_rows(
    needed: Int[Tensor, " L"],
    image_counts: Int[Tensor, " C"],
    *,
    rule: Rule,
    num_sampled: int,
    power: float = 0.5,
    generator: torch.Generator,
) -> Int[Tensor, " K"]:
    """The vocabulary rows that one step scores, shared by its images: sorted, each once.

    These are the needed classes and `num_sampled` more, drawn without replacement with probability proportional to
    (number of training images) ** `power`; classes without training images are never drawn. Under `strict` a drawn
    class would count nowhere, so nothing is drawn. Under `all` the whole vocabulary is scored. There is always at least
    one row.

    Args:
        needed: `needed_classes` of the batch, on all ranks together.
        image_counts: number of training images of each class of the vocabulary.
        generator: on the device of `image_counts` and `needed`.
    """
    if rule == "all":
        return torch.arange(len(image_counts), device=image_counts.device)
    wanted = torch.zeros_like(image_counts, dtype=torch.bool)
    wanted[needed] = True
    if rule != "strict":
        drawable = ~wanted & (image_counts > 0)
        num_drawn = min(num_sampled, int(drawable.sum()))
        if num_drawn > 0:
            weights = torch.where(drawable, image_counts.double() ** power, 0)
            wanted[torch.multinomial(weights, num_drawn, replacement=False, generator=generator)] = True
    if not wanted.any():  # a batch without objects, and nothing to draw: one row, which `strict` masks out
        wanted[image_counts.argmax()] = True
    return wanted.nonzero().squeeze(1)


def class_mask(targets: tuple[Targets, ...], class_rows: Int[Tensor, " K"], *, rule: Rule) -> Bool[Tensor, "B K"]:
    """Whether a class counts at an image's points that are not matched to it; matched points always count."""
    mask = torch.zeros(len(targets), len(class_rows), dtype=torch.bool, device=class_rows.device)
    for row, image in enumerate(targets):
        mask[row] = _image_mask(image, class_rows, rule)
    return mask


def _image_mask(image: Targets, class_rows: Int[Tensor, " K"], rule: Rule) -> Bool[Tensor, " K"]:
    not_exhaustive = torch.isin(class_rows, image.not_exhaustive_classes)
    match rule:
        case "strict":
            verified = torch.cat([image.classes, image.negative_classes])
            return torch.isin(class_rows, verified) & ~not_exhaustive
        case "sampled":
            return ~not_exhaustive
        case "all":
            return torch.ones_like(class_rows, dtype=torch.bool)
        case _:
            assert_never(rule)
