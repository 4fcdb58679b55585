"""The protocol `Teacher`, a detector that finds boxes for queries, and its implementation with our own detectors."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor
from torch.nn import functional as F

from ovd.clip.load import Clip
from ovd.data.loading.padding import pad_images
from ovd.data.loading.transforms import eval_transform
from ovd.inference import BatchDetector, ImageBatch
from ovd.model.query_texts import QueryTexts
from ovd.selftrain.labels import TeacherBoxes
from ovd.selftrain.teacher_settings import describe_settings
from ovd.text.encoder import BATCH, encode_tokens, text_tower_fingerprint
from ovd.text.names import clean_name, fill_template


@runtime_checkable
class Teacher(Protocol):
    """A detector that takes different queries for each image."""

    name: str
    """Description of everything that the boxes depend on."""

    def detect(self, images: list[UInt8[np.ndarray, "_ _ 3"]], queries: list[tuple[str, ...]]) -> list[TeacherBoxes]:
        """Detect in RGB images of any size, each with its own queries; boxes are sorted best first.

        `TeacherBoxes.texts` are positions in the image's queries; an image without queries has no boxes.
        """
        ...


class TextVariants:
    """Embeddings of distinct texts from the frozen text tower, in V prompts each, kept until other texts are loaded."""

    def __init__(self, clip: Clip, templates: tuple[str, ...] | None):
        """
        Args:
            templates: prompt templates for names and phrases, which are cleaned first (text/names.py); None encodes
                texts unchanged, for captions.
        """
        self.templates = templates
        self.text_tower = text_tower_fingerprint(clip)
        self._clip = clip
        self._num_variants = 1 if templates is None else len(templates)
        self._padding = clip.tokenizer([""])[0, -1]
        self._row: dict[str, int] = {}
        self._variants: Float16[np.ndarray, "Q V D"] | None = None
        self._means = torch.empty(0, clip.dim)
        self.num_long = 0
        """Number of loaded texts with a prompt that fills the text tower's context and may have been cut."""

    def load(self, texts: Sequence[str]) -> Float16[np.ndarray, "Q V D"]:
        """Encode distinct texts, which replace the previous ones; return unit rows by text and template.

        The same texts in the same order, such as the classes of the next shard, are not encoded again.
        """
        if self._variants is not None and list(self._row) == list(texts):
            return self._variants
        variants = np.empty((len(texts), self._num_variants, self._clip.dim), np.float16)
        self._means = torch.empty(len(texts), self._clip.dim)
        self.num_long = 0
        texts_at_a_time = max(1, BATCH // self._num_variants)
        for start in range(0, len(texts), texts_at_a_time):
            chunk = slice(start, start + texts_at_a_time)
            tokens = self._clip.tokenizer([prompt for text in texts[chunk] for prompt in self._prompts(text)])
            rows = encode_tokens(self._clip, tokens).view(-1, *variants.shape[1:])
            variants[chunk] = rows.half().numpy()
            self._means[chunk] = F.normalize(rows.mean(dim=1), dim=-1)
            is_full = (tokens[:, -1] != self._padding).view(-1, self._num_variants)
            self.num_long += int(is_full.any(dim=1).sum())
        self._row = {text: row for row, text in enumerate(texts)}
        self._variants = variants
        return variants

    def means(self, texts: Iterable[str]) -> Float[Tensor, "C D"]:
        """Return a unit row per text, the mean over the templates; the texts must be loaded."""
        return self._means[[self._row[text] for text in texts]]

    def __contains__(self, text: str) -> bool:
        return text in self._row

    def _prompts(self, text: str) -> list[str]:
        if self.templates is None:
            return [text]
        return [fill_template(template, clean_name(text)) for template in self.templates]


class OvdTeacher:
    """One of our detectors as a Teacher: images are processed in batches, each with its own queries only."""

    def __init__(self, inference: BatchDetector, texts: TextVariants, *, run: str):
        """
        Args:
            inference: the detector with its inference settings.
            texts: encoder of queries with the text tower that the detector was trained with; queries that are not
                loaded yet are loaded.
            run: run folder in the detector's config, for `name`; it stays the same if the folder is moved.
        """
        self.settings = describe_settings(inference)
        """Description of the weights and inference settings that the boxes depend on."""
        self.name = f"{run} {self.settings}"
        self._inference = inference
        self._texts = texts
        self._resize = eval_transform(size=inference.size)

    @torch.no_grad()
    def detect(self, images: list[UInt8[np.ndarray, "_ _ 3"]], queries: list[tuple[str, ...]]) -> list[TeacherBoxes]:
        """Detect as in `Teacher.detect`; padding to a common size moves boxes a little if the images' shapes differ."""
        if not images:
            return []
        distinct = dict.fromkeys(text for asked in queries for text in asked)
        if not all(text in self._texts for text in distinct):
            self._texts.load(list(distinct))
        original_sizes = torch.tensor([image.shape[:2] for image in images])
        resized = [torch.from_numpy(self._resize(image)).permute(2, 0, 1) for image in images]
        padded, sizes = pad_images(resized, divisor=self._inference.detector.size_divisor)
        texts = [QueryTexts(self._texts.means(asked)) for asked in queries]
        found = self._inference.detect_each(texts, ImageBatch(padded, sizes, original_sizes))
        return [TeacherBoxes(item.boxes.numpy(), item.scores.numpy(), item.classes.numpy()) for item in found]
