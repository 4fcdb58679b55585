"""An exported detector for use from Python: image and class names in, boxes out. Does not import torch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ovd.data.images.pixels import AnyImage, checked_size, pixels_of, warn_of_other_size
from ovd.onnx.resize import resize
from ovd.onnx.session import Detections, DetectionSession
from ovd.onnx.text import TextEncoder
from ovd.shapes import Float32, UInt8
from ovd.text.names import MAX_CACHED_NAME_LISTS, as_query_tuple, check_unique_names
from ovd.text.unit_rows import as_unit_rows
from ovd.threshold import shown_threshold


class Predictor:
    """A detector of named classes in one image per call, like `ovd.predictor.Predictor`; text embeddings are cached."""

    def __init__(self, session: DetectionSession, encode: TextEncoder | None = None, *, size: int | None = None):
        """
        Args:
            encode: the text tower; without it only `detect` works.
            size: longest side in pixels that images are resized to; by default as in training.
        """
        self._session = session
        self._encode = encode
        self._size = session.usage.size if size is None else checked_size(size)
        if self.is_calibrated:
            warn_of_other_size(session.usage.size, self._size)
        self._text_of = lru_cache(MAX_CACHED_NAME_LISTS)(self._rows)

    @classmethod
    def load(
        cls,
        model: Path | str,
        *,
        size: int | None = None,
        threads: int = 0,
        providers: Sequence[Any] | None = None,
    ) -> "Predictor":
        """Load a model that `ovd export` wrote, with the text tower's files beside it if they exist.

        Args:
            size: as in `__init__`.
            threads: threads per operation; 0 for as many as there are cores.
            providers: onnxruntime's execution providers for the detector; by default the CPU.

        Raises:
            ValueError: onnxruntime or the file is missing, or `ovd export` did not write the file.
        """
        path = Path(model)
        session = DetectionSession(path, threads=threads, providers=providers)
        encode = TextEncoder(path, threads=threads) if path.with_suffix(".text.onnx").is_file() else None
        return cls(session, encode, size=size)

    @property
    def threshold(self) -> float:
        """Score threshold for reporting boxes: a probability if the detector is calibrated, else 0.45."""
        return shown_threshold(self._session.usage.threshold)

    @property
    def is_calibrated(self) -> bool:
        """Whether scores are calibrated: each is the probability that an object of this name is there."""
        return self._session.usage.threshold is not None

    def __call__(self, image: AnyImage, names: str | Sequence[str]) -> Detections:
        """Detect named classes in one image.

        Args:
            image: a file, or a PIL image or an array, which are read by the rules of `ovd.data.images.pixels`.
            names: any class names, at least one; a single name may be given as a string.

        Returns:
            Boxes in pixels of the image, best first; `classes` are positions in `names`.

        Raises:
            ImageError: the file is missing or not an image.
            ValueError: the rules do not allow the image, there is no name, a name is blank or given twice, or the model
                has no text tower.
        """
        queries = as_query_tuple(names, (str,))
        check_unique_names(queries)
        return self.detect(image, self._text_of(queries))

    def detect(self, image: AnyImage, text: Float32[np.ndarray, "C D"]) -> Detections:
        """Detect with given text embeddings instead of names.

        Args:
            image: as for `__call__`.
            text: one unit row per class; `classes` are positions of rows.

        Raises:
            ImageError, ValueError: as for `__call__` and `as_unit_rows`.
        """
        text = as_unit_rows(text, self._session.usage.dim)
        pixels = pixels_of(image)
        resized = resize(pixels, self._size)
        padded = pad(resized, self._session.usage.size_divisor)
        (found,) = self._session(padded[None], np.array([resized.shape[:2]], dtype=np.int64), text)
        (height, width), (old_height, old_width) = pixels.shape[:2], resized.shape[:2]
        to = np.array([width, height] * 2, dtype=np.float32)
        rescaled = found.boxes * to / np.array([old_width, old_height] * 2, dtype=np.float32)
        return replace(found, boxes=np.minimum(rescaled, to))  # products above 2**24 can be rounded up

    def _rows(self, names: tuple[str, ...]) -> Float32[np.ndarray, "C D"]:
        if self._encode is None:
            raise ValueError("the model was exported without its text tower (--no-text); call detect with text rows")
        return self._encode(names)


def pad(image: UInt8[np.ndarray, "h w 3"], divisor: int) -> UInt8[np.ndarray, "H W 3"]:
    """Pad an image with zeros at the right and bottom, so that its sides are multiples of `divisor`."""
    return np.pad(image, [*((0, -side % divisor) for side in image.shape[:2]), (0, 0)])
