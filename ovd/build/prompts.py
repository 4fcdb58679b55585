"""Encode prompts: classes given by texts, by example pictures, or by both, as rows of the vocabulary.

An example is embedded by the image side of the run's CLIP model, as it was before training. CLIP's embeddings of
pictures lie apart from its embeddings of texts: among names, a class with raw embeddings of pictures takes the boxes of
other classes. So the mean embedding of crops of true boxes, which a calibrated run stores, is subtracted, and the mean
of the trained texts is added. The row of several examples is their mean, and the row of texts and examples the weighted
mean of the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ovd.build.crops import build_crop_encoder
from ovd.build.detector import load_original_clip, resolve_compute, resolve_device
from ovd.build.text import score_ensemble, text_of_names
from ovd.build.trained import TrainedDetector
from ovd.config.training import TrainConfig
from ovd.data.images.pixels import AnyImage, pixels_of
from ovd.experts.folder import read_expert
from ovd.model.crop_encoder import CropEncoder
from ovd.model.crop_options import CropOptions
from ovd.model.query_texts import QueryTexts
from ovd.model.similarity import unit_embeddings
from ovd.shapes import UInt8
from ovd.text.names import isin_names, name_key
from ovd.warn import warn

EXAMPLE_VIEWS = ((1.0, 1.0), (1.3, 1.0))
"""Views of an example that CLIP embeds: tight, and with some of its surroundings (`CropOptions.views`)."""
SHARE_OF_IMAGES = 0.2
"""Weight of the examples in the row of a class with both texts and examples, chosen on the base classes of the embedded
world (docs/results.md, "Example pictures as queries")."""


@dataclass(frozen=True, eq=False)
class Example:
    """A picture of a thing, or the part of a picture that shows it."""

    image: AnyImage
    box: tuple[float, float, float, float] | None = None
    """Box as xyxy in pixels of the image; None for the whole image."""

    def read(self) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[float, float, float, float]]:
        """Read the pixels of the picture and the box in it.

        Raises:
            ImageError: the file is missing or not an image.
            ValueError: `pixels_of` does not read the image in memory, or the box is empty or reaches out of the image.
        """
        pixels = pixels_of(self.image)
        height, width = pixels.shape[:2]
        where = self.image if isinstance(self.image, str | PathLike) else "an example"
        box = (0.0, 0.0, float(width), float(height)) if self.box is None else self.box
        if len(box) != 4:
            raise ValueError(f"{where}: a box must have four numbers, x0, y0, x1, y1, not {len(box)}: {box}")
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is empty or not inside the image, "
                f"which is {width} x {height} px"
            )
        return pixels, box


@dataclass(frozen=True, eq=False)
class Prompt:
    """A class to detect, by texts, by examples, or by both."""

    name: str
    """Name of the class in results; used as a query only if it is also in `texts`."""
    texts: tuple[str, ...] = ()
    """Names of the class, in any words."""
    images: tuple[Example, ...] = ()
    """Examples of the class; a few are better than one."""
    share_of_images: float = SHARE_OF_IMAGES
    """Weight of the examples, 0 to 1, if there are texts as well."""

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not all(isinstance(text, str) for text in self.texts):
            raise ValueError(
                f'the prompt {self.name!r}: texts must be a tuple, such as ("umbrella",), not {self.texts!r}'
            )
        if isinstance(self.images, Example) or not all(isinstance(image, Example) for image in self.images):
            raise ValueError(f"the prompt {self.name!r}: images must be a tuple of examples, such as (Example(path),)")
        if not self.texts and not self.images:
            raise ValueError(f"the prompt {self.name!r} has neither a text nor an example")
        if not isinstance(self.name, str):
            raise ValueError(f"the name of a prompt must be a string, not {self.name!r}")
        if not all(map(name_key, (self.name, *self.texts))):
            raise ValueError(f"the prompt {self.name!r} has a blank name or text")
        if not 0 <= self.share_of_images <= 1:
            raise ValueError(
                f"the prompt {self.name!r}: share_of_images is {self.share_of_images}; it must be from 0 to 1"
            )


class PromptEncoder:
    """Encoder of names and prompts for a detector."""

    def __init__(self, trained: TrainedDetector):
        self._trained = trained

    def rows(self, prompts: tuple[str | Prompt, ...]) -> Float[Tensor, "C D"]:
        """Return one unit row per name or prompt.

        Raises:
            ImageError: the file of an example is missing or not an image.
            ValueError: an example's box is empty or reaches out of its image.
        """
        whole = [Prompt(prompt, (prompt,)) if isinstance(prompt, str) else prompt for prompt in prompts]
        self._warn_of_experts(whole)
        encoded = self._encode_texts(tuple(text for prompt in whole for text in prompt.texts))
        text_rows = encoded.split([len(prompt.texts) for prompt in whole])
        return torch.stack([self._row(prompt, own) for prompt, own in zip(whole, text_rows, strict=True)])

    def queries(self, prompts: tuple[str | Prompt, ...]) -> QueryTexts:
        """Return the detector's queries for names and prompts: their rows, and its score ensemble.

        Raises:
            ImageError, ValueError: as `rows`.
        """
        texts = [prompt if isinstance(prompt, str) else prompt.texts for prompt in prompts]
        return QueryTexts(self.rows(prompts), score_ensemble(self._trained, texts))

    def encode(self, example: Example) -> Float[Tensor, " D"]:
        """Return CLIP's unit embedding of an example.

        Raises:
            ImageError, ValueError: as `Example.read`.
        """
        pixels, box = example.read()
        device = resolve_device(self._trained.config)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)
        size, boxes = torch.tensor([pixels.shape[:2]], device=device), torch.tensor([box], device=device)
        ((row,),) = self._crops(image, size, [boxes])
        return row.float().cpu()

    def combine(
        self,
        text_rows: Float[Tensor, "T D"],
        example_rows: Float[Tensor, "E D"],
        share_of_images: float = SHARE_OF_IMAGES,
    ) -> Float[Tensor, " D"]:
        """Combine the names and examples of a class into its unit row.

        Args:
            text_rows: unit rows of the class's names.
            example_rows: unit rows of its examples (`encode`); there is at least one name or example.
            share_of_images: weight of the examples if there are names as well.
        """
        if not len(text_rows):
            return self._to_text_space(example_rows.mean(dim=0))
        of_name = text_rows[0] if len(text_rows) == 1 else unit_embeddings(text_rows.mean(dim=0))
        if not len(example_rows):
            return of_name
        image_row = self._to_text_space(example_rows.mean(dim=0))
        return unit_embeddings((1 - share_of_images) * of_name + share_of_images * image_row)

    def _warn_of_experts(self, prompts: Sequence[Prompt]) -> None:
        """Warn of prompts with an expert's name that the detector answers: experts know rows of single names only."""
        mixed = [prompt for prompt in prompts if len(prompt.texts) > 1 or (prompt.texts and prompt.images)]
        if not mixed:
            return
        experts = map(read_expert, self._trained.experts.folders)
        known = [form for expert in experts for form in expert.description.names_and_synonyms]
        for prompt in mixed:
            if any(isin_names(prompt.texts, known)):
                warn(
                    f"the prompt {prompt.name!r} has several texts or examples; an expert knows this name, but experts "
                    "take a single text only, so the base detector answers"
                )

    def _encode_texts(self, texts: tuple[str, ...]) -> Float[Tensor, "T D"]:
        return text_of_names(self._trained, texts)

    def _row(self, prompt: Prompt, text_rows: Float[Tensor, "T D"]) -> Float[Tensor, " D"]:
        example_rows = [self.encode(example) for example in prompt.images]
        rows = torch.stack(example_rows) if example_rows else text_rows.new_zeros(0, text_rows.shape[1])
        return self.combine(text_rows, rows, prompt.share_of_images)

    def _to_text_space(self, image_row: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """Move the mean row of examples among the rows of texts; without a known mean example, only normalize it."""
        mean_example, calibration = self._trained.mean_example, self._trained.calibration
        if mean_example is None or calibration is None:
            return unit_embeddings(image_row)
        return unit_embeddings(unit_embeddings(image_row) - mean_example + calibration.trained_text.mean(dim=0))

    @cached_property
    def _crops(self) -> CropEncoder:
        """Crop encoder, loaded with the first example: queries by name need no second image side."""
        return example_encoder(self._trained.config)


def example_encoder(config: TrainConfig) -> CropEncoder:
    """Build the encoder of examples: the image side of a run's CLIP model, as it was before training."""
    return build_crop_encoder(
        load_original_clip(config), CropOptions(views=EXAMPLE_VIEWS), resolve_compute(config), section="examples"
    )
