"""A detector that answers questions: several pictures at once, each with names of its own.

Pictures are in one batch only if they have one padded shape, which is the shape that each would have alone. So a
picture's answer does not depend on its company, apart from the rounding of sums.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ovd.build.detector import TrainedDetector, build_inference, score_ensemble
from ovd.build.text import evaluation_text
from ovd.data.buckets import Shape
from ovd.data.images import read_image
from ovd.data.padding import pad_images
from ovd.data.transforms import eval_transform
from ovd.structures import Detections
from ovd.text.names import clean_name

NAMES_KEPT = 4096
"""Names whose text rows are kept, those that were asked for last."""


@dataclass(frozen=True)
class Picture:
    """A picture at the size that the detector takes it in."""

    pixels: UInt8[Tensor, "3 h w"]
    """RGB."""
    shape: Shape
    """Height and width before it was resized."""
    padded_shape: Shape
    """Height and width that it is padded to."""


@dataclass(frozen=True)
class Question:
    """A picture, and what is looked for in it."""

    picture: Picture
    names: tuple[str, ...]


class Answerer:
    """A trained detector, and the rows of the names that it was asked for."""

    def __init__(self, trained: TrainedDetector, *, size: int | None = None):
        """
        Args:
            trained: a detector, which is moved to the device of its config.
            size: longest side in pixels that pictures are resized to; by default as in training.
        """
        self._trained = trained
        self._inference = build_inference(trained, size=size)
        self._resize = eval_transform(size=self._inference.size)
        self._rows: OrderedDict[str, Float[Tensor, " D"]] = OrderedDict()

    @property
    def size(self) -> int:
        """Longest side in pixels that pictures are resized to."""
        return self._inference.size

    @property
    def device(self) -> torch.device:
        """Device that the detector runs on."""
        return self._inference.device

    @property
    def threshold(self) -> float | None:
        """The score above which boxes are best reported; None if the detector was not calibrated."""
        return self._inference.threshold

    @property
    def trained_names(self) -> tuple[str, ...]:
        """The names that the detector was trained on, in ordinary words."""
        return tuple(map(clean_name, self._trained.classes))

    def warm_up(self) -> None:
        """Answer a question, so that the first of a user does not wait for what torch does once.

        Raises:
            Exception: the detector does not work.
        """
        (answer,) = self.answer([Question(self.picture(np.zeros((64, 64, 3), dtype=np.uint8)), ("object",))])
        if isinstance(answer, Exception):
            raise answer

    def prepare(self, content: bytes, *, max_pixels: int) -> Picture:
        """Decode and resize a picture file. Any thread may do this.

        Raises:
            ImageError: damaged, not an image, or larger than `max_pixels`.
        """
        return self.picture(read_image(content, max_pixels=max_pixels))

    def picture(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Picture:
        """Resize an RGB image."""
        resized = torch.from_numpy(np.ascontiguousarray(self._resize(pixels))).permute(2, 0, 1)
        divisor = self._inference.detector.size_divisor
        height, width = (-(-side // divisor) * divisor for side in resized.shape[1:])
        return Picture(resized, (pixels.shape[0], pixels.shape[1]), (height, width))

    def answer(self, questions: Sequence[Question]) -> list[Detections | Exception]:
        """Detections of each picture, `classes` being positions in its names; or what went wrong with it alone.

        One thread at a time may do this.

        Args:
            questions: at least one, all of one padded shape.
        """
        try:
            return list(self._answer_together(questions))
        except Exception as error:
            if len(questions) == 1:
                return [error]
        return [self.answer([question])[0] for question in questions]  # one of them must not stop the others

    def _answer_together(self, questions: Sequence[Question]) -> tuple[Detections, ...]:
        pictures = [question.picture for question in questions]
        assert len({picture.padded_shape for picture in pictures}) == 1, "pictures of one batch have one padded shape"
        images, sizes = pad_images(
            [picture.pixels for picture in pictures], divisor=self._inference.detector.size_divisor
        )
        return self._inference.detect_each(
            self._texts([question.names for question in questions]),
            images,
            sizes,
            torch.tensor([picture.shape for picture in pictures]),
            ensembles=[score_ensemble(self._trained, question.names) for question in questions],
        )

    def _texts(self, lists: Sequence[tuple[str, ...]]) -> list[Float[Tensor, "_ D"]]:
        """The unit rows of each list of names; all that are new are encoded together."""
        asked = dict.fromkeys(name for names in lists for name in names)
        if new := [name for name in asked if name not in self._rows]:
            self._rows.update(zip(new, evaluation_text(self._trained.config, self._trained.clip, new), strict=True))
        texts = [torch.stack([self._rows[name] for name in names]) for names in lists]
        for name in asked:
            self._rows.move_to_end(name)
        while len(self._rows) > NAMES_KEPT:
            self._rows.popitem(last=False)
        return texts
