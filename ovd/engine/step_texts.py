"""The texts that a training step scores, and the images that they count for."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd.choices import NegativeRule
from ovd.distributed import union_over_ranks
from ovd.model.federated import class_mask, needed_classes, sample_class_ids
from ovd.structures import Batch
from ovd.text.bank import TextBank
from ovd.text.pair_texts import PairTexts


@dataclass(frozen=True)
class StepTexts:
    """The K texts of a step: classes of the vocabulary, then texts of image-text pairs."""

    class_ids: Int[Tensor, " K"]
    """Positions in the vocabulary, then ids of texts; ascending."""
    embeddings: Float[Tensor, "K D"]
    mask: Bool[Tensor, "B K"]
    """Whether a text counts at an image's points that are matched to no box."""
    mask_in_boxes: Bool[Tensor, "B K"]
    """Whether a text counts at an image's points that are matched to a box of another text."""
    of_pairs: Bool[Tensor, " K"]
    """True for texts of the step's image-text pairs, on any rank."""

    def of_images(self, rows: slice) -> "StepTexts":
        return replace(self, mask=self.mask[rows], mask_in_boxes=self.mask_in_boxes[rows])

    def to(self, device: torch.device) -> "StepTexts":
        return StepTexts(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class TextSampler:
    """Draws a step's texts and one variant of each."""

    bank: TextBank
    image_counts: Int[Tensor, " C"]
    """Number of training images per class of the vocabulary."""
    negatives: NegativeRule
    sampled_classes: int
    """Number of classes drawn besides those of the batch."""
    noise: float
    """Length of the Gaussian noise added to a variant (`TextBank.sample`)."""
    pair_texts: PairTexts | None
    """Texts of the image-text pairs; None without pairs."""
    sampled_texts: int
    """Number of pairs' texts drawn besides those of the batch."""
    held_out: Bool[Tensor, " C"] | None = None
    """Classes of the vocabulary whose names are never trained on; None if there are none."""
    name_dropout: float = 0.0
    """Share of the vocabulary's names that are left out of a step, drawn anew in each."""

    def sample(self, batch: Batch, generator: torch.Generator) -> StepTexts:
        """Draw the classes of `sample_class_ids` for detection data; for pairs, the batch's texts and further ones.

        Pairs' texts are no negatives of annotated images, and classes none of pairs: an object that a caption names
        may be in an annotated image without a label, and the other way round. The negatives of a pair are therefore
        texts of other pairs: those of the batch, as in contrastive training, and further ones drawn from all pairs. Its
        own texts are negatives only in each other's boxes, since elsewhere the teacher may have missed an object.
        """
        is_pair = batch.is_pair.tolist()
        annotated = tuple(of for of, paired in zip(batch.targets, is_pair, strict=True) if not paired)
        pairs = tuple(of for of, paired in zip(batch.targets, is_pair, strict=True) if paired)
        needed = union_over_ranks(needed_classes(annotated, negatives=self.negatives))
        class_ids = sample_class_ids(
            needed,
            self.image_counts,
            negatives=self.negatives,
            sampled_classes=self.sampled_classes,
            left_out=self._left_out(generator),
            generator=generator,
        )
        embeddings = self.bank.sample(class_ids, generator=generator, noise=self.noise)
        mask = class_mask(annotated, class_ids, negatives=self.negatives)
        of_pairs = torch.zeros(len(class_ids), dtype=torch.bool)
        if self.pair_texts is None:
            return StepTexts(class_ids, embeddings, mask, mask, of_pairs)
        own = [torch.cat([of.classes, of.image_texts]) for of in pairs]
        of_batch = union_over_ranks(torch.cat([torch.zeros(0, dtype=torch.int64), *own]))
        if len(of_batch) == 0:  # no rank has a pair
            return StepTexts(class_ids, embeddings, mask, mask, of_pairs)
        ids = torch.cat([of_batch, self.pair_texts.draw(self.sampled_texts, generator)]).unique()
        of_ids = class_mask(pairs, ids, negatives="sampled")
        return StepTexts(
            torch.cat([class_ids, ids]),
            torch.cat([embeddings, self.pair_texts.sample(ids, generator=generator, noise=self.noise)]),
            _apart(batch.is_pair, mask, of_ids),
            _apart(batch.is_pair, mask, torch.ones_like(of_ids)),
            torch.cat([of_pairs, torch.isin(ids, of_batch)]),
        )

    def _left_out(self, generator: torch.Generator) -> Bool[Tensor, " C"] | None:
        """The classes whose names this step does not use."""
        if self.name_dropout == 0:
            return self.held_out
        left_out = torch.rand(len(self.image_counts), generator=generator) < self.name_dropout
        if self.held_out is not None:
            left_out |= self.held_out
        return self.held_out if left_out.all() else left_out  # one name is needed


def _apart(
    is_pair: Bool[Tensor, " B"], annotated: Bool[Tensor, "_ L"], pairs: Bool[Tensor, "_ M"]
) -> Bool[Tensor, "B K"]:
    """Join the masks of annotated images and of pairs in the images' order; neither counts for the other's texts."""
    num_classes = annotated.shape[1]
    mask = torch.zeros(len(is_pair), num_classes + pairs.shape[1], dtype=torch.bool)
    mask[~is_pair, :num_classes] = annotated
    mask[is_pair, num_classes:] = pairs
    return mask
