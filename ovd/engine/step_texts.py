"""The texts that a training step scores, and the images that they count for."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd.config.training import TrainSection
from ovd.distributed import union_over_ranks
from ovd.model.federated import class_mask, required_classes, sample_class_ids, text_mask
from ovd.structures import Batch, Targets
from ovd.text.bank import TextBank
from ovd.text.pair_texts import PairTexts


@dataclass(frozen=True)
class StepTexts:
    """The K texts of a step: classes of the vocabulary, then texts of image-text pairs."""

    class_ids: Int[Tensor, " K"]
    """Rows of the vocabulary, then ids of texts; ascending."""
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
    """Sampler of a step's texts, with one variant of each."""

    bank: TextBank
    image_counts: Int[Tensor, " C"]
    """Number of training images per class of the vocabulary."""
    train: TrainSection
    """Settings of the training: negatives, number of drawn classes, and name dropout."""
    noise: float
    """Length of the Gaussian noise added to a variant (`TextBank.sample`)."""
    pair_texts: PairTexts | None = None
    """Texts of the image-text pairs; None without pairs."""
    sampled_texts: int = 0
    """Number of texts drawn from all pairs, in addition to those of the batch."""
    held_out: Bool[Tensor, " C"] | None = None
    """Classes of the vocabulary that no step scores; None if there are none. Texts of pairs may contain their names, as
    they may contain those of rare classes."""

    def sample(self, batch: Batch, generator: torch.Generator) -> StepTexts:
        """Draw the texts of a step: classes for annotated images (`sample_class_ids`), and texts for pairs.

        Classes are never negatives of pairs, since a caption does not name every object. The negatives of a pair are
        texts of other pairs: those of the batch, as in contrastive training, and others drawn from all pairs. A pair's
        own texts are negatives only in each other's boxes, since elsewhere the teacher may have missed an object.

        With `train.pair_negatives` the same texts are also negatives of annotated images, except those that may mean a
        class present in the image (`text_mask`). Otherwise a novel name is never a negative outside of pairs.
        """
        is_pair = batch.is_pair.tolist()
        annotated = tuple(targets for targets, paired in zip(batch.targets, is_pair, strict=True) if not paired)
        pairs = tuple(targets for targets, paired in zip(batch.targets, is_pair, strict=True) if paired)
        classes = self._classes(annotated, generator)
        texts = self._texts_of_pairs(pairs, generator)
        if texts is None:
            return classes
        if self.train.pair_negatives:
            text_negatives = text_mask(annotated, texts.embeddings, self._class_rows)
        else:
            text_negatives = torch.zeros(len(annotated), len(texts.class_ids), dtype=torch.bool)
        annotated_mask = torch.cat([classes.mask, text_negatives], dim=1)
        return StepTexts(
            torch.cat([classes.class_ids, texts.class_ids]),
            torch.cat([classes.embeddings, texts.embeddings]),
            _join(batch.is_pair, annotated_mask, texts.mask),
            _join(batch.is_pair, annotated_mask, texts.mask_in_boxes),
            torch.cat([classes.of_pairs, texts.of_pairs]),
        )

    def _classes(self, annotated: tuple[Targets, ...], generator: torch.Generator) -> StepTexts:
        """Draw the classes, with masks for the annotated images only."""
        rule = self.train.negatives
        required = union_over_ranks(required_classes(annotated, negatives=rule))
        ids = sample_class_ids(
            required,
            self.image_counts,
            negatives=rule,
            sampled_classes=self.train.sampled_classes,
            excluded=self._excluded(generator),
            generator=generator,
        )
        embeddings = self.bank.sample(ids, generator=generator, noise=self.noise)
        mask = class_mask(annotated, ids, negatives=rule)
        return StepTexts(ids, embeddings, mask, mask, torch.zeros(len(ids), dtype=torch.bool))

    def _texts_of_pairs(self, pairs: tuple[Targets, ...], generator: torch.Generator) -> StepTexts | None:
        """Draw the texts of pairs, with masks for the pairs only; return None if no rank has a pair."""
        if self.pair_texts is None:
            return None
        own = [torch.cat([targets.classes, targets.image_texts]) for targets in pairs]
        batch_ids = union_over_ranks(torch.cat([torch.zeros(0, dtype=torch.int64), *own]))
        if len(batch_ids) == 0:
            return None
        ids = torch.cat([batch_ids, self.pair_texts.draw(self.sampled_texts, generator)]).unique()
        embeddings = self.pair_texts.sample(ids, generator=generator, noise=self.noise)
        mask = class_mask(pairs, ids, negatives="sampled")
        return StepTexts(ids, embeddings, mask, torch.ones_like(mask), torch.isin(ids, batch_ids))

    @cached_property
    def _class_rows(self) -> Float[Tensor, "C D"]:
        """The first variant of each class of the vocabulary."""
        classes = np.arange(len(self.image_counts))
        return self.bank.rows(classes, np.zeros_like(classes))

    def _excluded(self, generator: torch.Generator) -> Bool[Tensor, " C"] | None:
        """Draw the classes that this step does not score: held-out ones, and those of name dropout."""
        if self.train.name_dropout == 0:
            return self.held_out
        excluded = torch.rand(len(self.image_counts), generator=generator) < self.train.name_dropout
        if self.held_out is not None:
            excluded |= self.held_out
        return self.held_out if excluded.all() else excluded  # at least one class is needed


def _join(
    is_pair: Bool[Tensor, " B"], annotated: Bool[Tensor, "_ K"], pairs: Bool[Tensor, "_ M"]
) -> Bool[Tensor, "B K"]:
    """Join the masks of annotated images and of pairs in the images' order; only the last M texts count for pairs."""
    mask = torch.zeros(len(is_pair), annotated.shape[1], dtype=torch.bool)
    mask[~is_pair] = annotated
    mask[is_pair, annotated.shape[1] - pairs.shape[1] :] = pairs
    return mask
