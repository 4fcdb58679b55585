"""The texts that a training step scores, and the images they count for."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd.distributed import union_over_ranks
from ovd.model.federated import Rule, class_mask, needed_classes, sample_class_rows
from ovd.structures import Batch
from ovd.text.bank import TextBank
from ovd.text.pair_texts import PairTexts


@dataclass(frozen=True)
class StepTexts:
    """K texts of a step: classes of the vocabulary, then texts of image-text pairs."""

    classes: Int[Tensor, " K"]
    """Rows of the vocabulary and ids of texts, ascending."""
    embeddings: Float[Tensor, "K D"]
    mask: Bool[Tensor, "B K"]
    """Whether a text counts at an image's points that are matched to no box."""
    mask_in_boxes: Bool[Tensor, "B K"]
    """Whether it counts at points that are matched to a box of another text."""
    of_pairs: Bool[Tensor, " K"]
    """Which are texts of the step's image-text pairs, on any rank."""

    def of_images(self, rows: slice) -> "StepTexts":
        return replace(self, mask=self.mask[rows], mask_in_boxes=self.mask_in_boxes[rows])

    def to(self, device: torch.device) -> "StepTexts":
        return StepTexts(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class TextSampler:
    """Draws a step's texts and one variant of each."""

    bank: TextBank
    image_counts: Int[Tensor, " C"]
    """Training images per class of the vocabulary."""
    rule: Rule
    num_sampled: int
    noise: float
    pair_texts: PairTexts | None
    num_sampled_texts: int
    """Texts of pairs drawn besides those of the batch."""

    def sample(self, batch: Batch, generator: torch.Generator) -> StepTexts:
        """The classes of `sample_class_rows` for detection data; for pairs the texts of the batch, and more.

        Neither is held against the other: what a caption names may be in an image of the detection data unsaid, and
        the other way round. So the negatives of a pair are texts of other pairs: those of the batch, as in contrastive
        training, and more drawn from all pairs. Its own texts are negatives in boxes of each other alone, since what
        has no box may be something that the teacher missed.
        """
        num_detection = len(batch.targets) - batch.num_pairs
        annotated, paired = batch.targets[:num_detection], batch.targets[num_detection:]
        needed = union_over_ranks(needed_classes(annotated, rule=self.rule))
        rows = sample_class_rows(
            needed, self.image_counts, rule=self.rule, num_sampled=self.num_sampled, generator=generator
        )
        embeddings = self.bank.sample(rows, generator=generator, noise=self.noise)
        mask = class_mask(annotated, rows, rule=self.rule)
        of_pairs = torch.zeros(len(rows), dtype=torch.bool)
        if self.pair_texts is None:
            return StepTexts(rows, embeddings, mask, mask, of_pairs)
        own = [torch.cat([of.classes, of.negative_classes, of.not_exhaustive_classes]) for of in paired]
        of_batch = union_over_ranks(torch.cat([torch.zeros(0, dtype=torch.int64), *own]))
        if len(of_batch) == 0:  # no rank has a pair
            return StepTexts(rows, embeddings, mask, mask, of_pairs)
        ids = torch.cat([of_batch, self.pair_texts.draw(self.num_sampled_texts, generator)]).unique()
        return StepTexts(
            torch.cat([rows, ids]),
            torch.cat([embeddings, self.pair_texts.sample(ids, generator=generator, noise=self.noise)]),
            torch.block_diag(mask, class_mask(paired, ids, rule="sampled")).bool(),
            torch.block_diag(mask, torch.ones(len(paired), len(ids), dtype=torch.bool)).bool(),
            torch.cat([of_pairs, torch.isin(ids, of_batch)]),
        )
