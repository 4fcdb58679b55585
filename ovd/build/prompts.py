"""Classes that are asked for by texts, by example pictures, or by both: from a prompt to a row of the vocabulary.

CLIP's embeddings of pictures lie apart from those of texts. So the mean picture of the trained classes is taken off an
example's embedding, and their mean text put in its place; what is left says how this thing differs from others. A row
of both texts and examples is their weighted mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ovd.build.detector import TrainedDetector, build_crop_encoder, low_precision, resolve_device, untouched_clip
from ovd.build.text import evaluation_text
from ovd.data.images import read_image
from ovd.data.pixels import ImageInMemory, as_pixels
from ovd.model.crop_options import CropOptions
from ovd.model.similarity import unit_embeddings

EXAMPLE_VIEWS = ((1.0, 1.0), (1.3, 1.0))
"""How an example is shown to CLIP: tight, and with some of its surroundings (`CropOptions.views`)."""


@dataclass(frozen=True, eq=False)
class Example:
    """A picture of a thing, or the part of a picture that shows it."""

    image: Path | str | ImageInMemory
    box: tuple[float, float, float, float] | None = None
    """xyxy in pixels of the image; None for the whole image."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A class to detect."""

    name: str
    """What it is called in results; it is not asked for, unless it is one of `texts`."""
    texts: tuple[str, ...] = ()
    """Names of the class, any words."""
    images: tuple[Example, ...] = ()
    """Examples of it; a few are better than one."""


class PromptEncoder:
    """Encodes prompts with a run's text tower and the image side of its CLIP model, as it was before training."""

    def __init__(self, trained: TrainedDetector):
        self._trained = trained

    @cached_property
    def _crops(self):
        """Loaded when the first example comes: a detector that is asked by names needs no second image side."""
        config = self._trained.config
        return build_crop_encoder(
            untouched_clip(config),
            CropOptions(views=EXAMPLE_VIEWS),
            resolve_device(config),
            low_precision(config),
            section="examples",
        )
