"""The texts that a training step scores, and the images they count for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovd.model.federated import Rule, class_mask, sample_class_rows
from ovd.structures import Batch, Targets
from ovd.text.bank import TextBank
from ovd.text.pair_texts import PairTexts

_FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "of", "with", "without", "in", "on", "at", "by", "for", "from", "to", "and")
)


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
    negatives_of_detection_data: bool
    """Whether texts of pairs are negatives of detection data too."""
    class_words: Sequence[frozenset[str]]
    """`content_words` of each class of the vocabulary and of its synonyms."""

    def sample(self, batch: Batch, generator: torch.Generator) -> StepTexts:
        """The classes of `sample_class_rows` for detection data; for pairs the texts of the batch, and more.

        Classes are never held against pairs: a caption leaves out much of what is in its image. The negatives of a pair
        are texts of other pairs: those of the batch, as in contrastive training, and more drawn from all pairs. Its
        own texts are negatives in boxes of each other alone, since what has no box may be something that the teacher
        missed. Where `negatives_of_detection_data`, texts of pairs are negatives of detection data too, but for those
        that share a word with a class in the image: what captions name is seldom in an image of other classes.
        """
        num_detection = len(batch.targets) - batch.num_pairs
        annotated, paired = batch.targets[:num_detection], batch.targets[num_detection:]
        rows = sample_class_rows(
            annotated, self.image_counts, rule=self.rule, num_sampled=self.num_sampled, generator=generator
        )
        embeddings = self.bank.sample(rows, generator=generator, noise=self.noise)
        mask = class_mask(annotated, rows, rule=self.rule)
        if self.pair_texts is None or not paired:
            return StepTexts(rows, embeddings, mask, mask)
        ids = torch.cat([torch.cat([of.classes, of.negative_classes, of.not_exhaustive_classes]) for of in paired])
        ids = torch.cat([ids, self.pair_texts.draw(self.num_sampled_texts, generator)]).unique()
        unrelated = self._unrelated(annotated, self.pair_texts.texts(ids))
        of_pairs = class_mask(paired, ids, rule="sampled")
        return StepTexts(
            torch.cat([rows, ids]),
            torch.cat([embeddings, self.pair_texts.sample(ids, generator=generator, noise=self.noise)]),
            _blocks(mask, unrelated, of_pairs),
            _blocks(mask, unrelated, torch.ones_like(of_pairs)),
        )

    def _unrelated(self, annotated: tuple[Targets, ...], texts: list[str]) -> Bool[Tensor, "B K"]:
        """Whether a text has no word in common with the classes that are known to be in an image."""
        words = [content_words(text) for text in texts]
        unrelated = torch.zeros(len(annotated), len(texts), dtype=torch.bool)
        if self.negatives_of_detection_data:
            for row, image in enumerate(annotated):
                present = torch.cat([image.classes, image.not_exhaustive_classes]).unique().tolist()
                known = frozenset().union(*(self.class_words[c] for c in present))
                unrelated[row] = torch.tensor([not of_text & known for of_text in words], dtype=torch.bool)
        return unrelated


def content_words(text: str) -> frozenset[str]:
    """The words of a text or class name that say what it is about."""
    return frozenset(re.findall(r"[^\W_]+", text.lower())) - _FUNCTION_WORDS


def _blocks(
    annotated: Bool[Tensor, "A C"], beside: Bool[Tensor, "A K"], paired: Bool[Tensor, "P K"]
) -> Bool[Tensor, "B L"]:
    """One mask: detection data over pairs, classes beside texts; classes never count for pairs."""
    never = torch.zeros(len(paired), annotated.shape[1], dtype=torch.bool)
    return torch.cat([torch.cat([annotated, beside], dim=1), torch.cat([never, paired], dim=1)])
