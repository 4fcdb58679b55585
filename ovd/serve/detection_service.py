"""A detector that answers requests in batches of pictures, each with names of its own.

Pictures share a batch only if they have the same padded shape, which is the shape that each would have alone. So an
answer does not depend on the other pictures of its batch, except for the rounding of sums.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ovd.build.prompts import Example, PromptEncoder
from ovd.build.text import score_ensemble, text_of_names
from ovd.build.trained import TrainedDetector, build_inference
from ovd.data.images.read import read_image
from ovd.data.loading.buckets import Shape, round_up
from ovd.data.loading.padding import pad_images
from ovd.data.loading.transforms import eval_transform
from ovd.inference import ImageBatch
from ovd.model.query_texts import QueryTexts
from ovd.structures import Detections
from ovd.text.names import build_prompts, clean_name, find_equal_tokens
from ovd.text.prompts import TEMPLATES

MAX_EXAMPLE_SIDE = 1024
"""Longest side in pixels that an example is reduced to before it is embedded, which bounds the memory it takes."""
MAX_CACHED_NAMES = 4096
"""Number of names whose text rows are kept, the most recently used ones."""


@dataclass(frozen=True)
class PreparedImage:
    """A picture resized for the detector."""

    pixels: UInt8[Tensor, "3 h w"]
    """RGB pixels after resizing."""
    shape: Shape
    """Height and width before resizing."""
    padded_shape: Shape
    """Height and width after padding."""


@dataclass(frozen=True)
class DetectionRequest:
    """A picture and the classes to detect in it."""

    image: PreparedImage
    texts: tuple[str, ...]
    """Names to detect, without duplicates."""
    examples: Mapping[str, Float[Tensor, "_ D"]] = field(default_factory=dict)
    """Embeddings of example pictures (`DetectionService.prepare_example`) by class name; a name that is also in `texts`
    is detected by both."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in the answer: `texts`, then those with examples only."""
        return (*self.texts, *(name for name in self.examples if name not in self.texts))

    @property
    def texts_of_names(self) -> list[tuple[str, ...]]:
        """Text of each of `names`; none for a name with examples only."""
        return [(name,) if name in self.texts else () for name in self.names]


class DetectionService:
    """A trained detector, with the text rows of recently used names."""

    def __init__(self, trained: TrainedDetector, *, size: int | None = None):
        """
        Args:
            trained: detector, which is moved to the device of its config.
            size: longest side in pixels that pictures are resized to; by default as in training.
        """
        self._trained = trained
        self.inference = build_inference(trained, size=size)
        self._resize = eval_transform(size=self.inference.size)
        self._rows: OrderedDict[str, Float[Tensor, " D"]] = OrderedDict()
        self._prompts = PromptEncoder(trained)
        self._encoding = Lock()

    @property
    def trained_names(self) -> tuple[str, ...]:
        """Names that the detector was trained on, in ordinary words."""
        return tuple(map(clean_name, self._trained.classes))

    def warm_up(self) -> None:
        """Answer one request, so that a user's first request does not wait for torch's one-time work.

        Raises:
            Exception: the detector does not work.
        """
        (answer,) = self.detect(
            [DetectionRequest(self.prepare_pixels(np.zeros((64, 64, 3), dtype=np.uint8)), ("object",))]
        )
        if isinstance(answer, Exception):
            raise answer

    def check_names(self, names: Sequence[str]) -> None:
        """Check that the text tower can tell names apart. Any thread may call this.

        Raises:
            ValueError: the text tower cannot tell two of the names apart; the message has both.
        """
        tokenizer = self._trained.clip.tokenizer
        context_length = tokenizer([""]).shape[1]
        long = [name for name in names if len(name.encode()) > context_length // 2]  # shorter ones are not cut
        templates = TEMPLATES[self._trained.config.bank.templates]
        tokens = [tokenizer(build_prompts(name, (), 0, templates)).numpy().tobytes() for name in long]
        if pairs := find_equal_tokens(long, tokens):
            raise ValueError(f"{pairs[0][0]!r} and {pairs[0][1]!r} are too long for the detector to distinguish them")

    def prepare(self, content: bytes, *, max_pixels: int) -> PreparedImage:
        """Decode and resize a picture file. Any thread may call this.

        Raises:
            ImageError: the file is damaged, not an image, or larger than `max_pixels`.
        """
        return self.prepare_pixels(read_image(content, max_pixels=max_pixels))

    def prepare_example(self, content: bytes, *, max_pixels: int) -> Float[Tensor, " D"]:
        """Decode and embed an example picture's file. Any thread may call this.

        Raises:
            ImageError: the file is damaged, not an image, or larger than `max_pixels`.
        """
        pixels = read_image(content, max_pixels=max_pixels)
        if max(pixels.shape[:2]) > MAX_EXAMPLE_SIDE:
            pixels = eval_transform(size=MAX_EXAMPLE_SIDE)(pixels)
        with self._encoding:
            return self._prompts.encode(Example(pixels))

    def prepare_pixels(self, pixels: UInt8[np.ndarray, "H W 3"]) -> PreparedImage:
        """Resize an RGB image."""
        resized = torch.from_numpy(np.ascontiguousarray(self._resize(pixels))).permute(2, 0, 1)
        divisor = self.inference.detector.size_divisor
        height, width = (round_up(side, divisor) for side in resized.shape[1:])
        return PreparedImage(resized, (pixels.shape[0], pixels.shape[1]), (height, width))

    def detect(self, requests: Sequence[DetectionRequest]) -> list[Detections | Exception]:
        """Return the detections of each request, or the exception that it raises alone.

        `classes` of the detections are positions in the request's `names`. Only one thread at a time may call this.

        Args:
            requests: at least one request, all with the same padded shape.
        """
        try:
            return list(self._detect_batch(requests))
        except Exception as error:
            if len(requests) == 1:
                return [error]
        return [self.detect([request])[0] for request in requests]  # one request must not stop the others

    def _detect_batch(self, requests: Sequence[DetectionRequest]) -> tuple[Detections, ...]:
        self._encode(dict.fromkeys(text for request in requests for text in request.texts))
        queries = [self._queries(request) for request in requests]
        self._evict_texts()
        prepared = [request.image for request in requests]
        assert len({image.padded_shape for image in prepared}) == 1, "pictures of one batch have one padded shape"
        images, sizes = pad_images([image.pixels for image in prepared], divisor=self.inference.detector.size_divisor)
        original_sizes = torch.tensor([image.shape for image in prepared])
        return self.inference.detect_each(queries, ImageBatch(images, sizes, original_sizes))

    def _encode(self, texts: dict[str, None]) -> None:
        """Encode the texts that have no row yet, all together, and mark all texts as recently used."""
        if new := [text for text in texts if text not in self._rows]:
            rows = text_of_names(self._trained, new)
            # Each row is copied, since a view would keep all of `rows` in memory.
            self._rows.update((text, row.clone()) for text, row in zip(new, rows, strict=True))
        for text in texts:
            self._rows.move_to_end(text)

    def _queries(self, request: DetectionRequest) -> QueryTexts:
        """Return a query for each of a request's names."""
        rows = {text: self._rows[text] for text in request.texts}
        for name, example_rows in request.examples.items():
            text_rows = rows[name][None] if name in rows else example_rows[:0]
            rows[name] = self._prompts.combine(text_rows, example_rows)
        ensemble = score_ensemble(self._trained, request.texts_of_names)
        return QueryTexts(torch.stack(list(rows.values())), ensemble)

    def _evict_texts(self) -> None:
        """Drop the least recently used rows beyond `MAX_CACHED_NAMES`."""
        while len(self._rows) > MAX_CACHED_NAMES:
            self._rows.popitem(last=False)
