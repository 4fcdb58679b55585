"""Options of the augmentation of training images."""

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat

from ovd.section import Section


def _smallest_first(scale: tuple[float, float]) -> tuple[float, float]:
    if scale[0] > scale[1]:
        raise ValueError("write the smallest factor first")
    return scale


class AugmentationOptions(Section):
    """Random changes of a training image, drawn anew each time it is loaded."""

    scale: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_smallest_first)] = (0.8, 1.25)
    """Scale jitter: smallest and largest factor of `size` that the longest side of an image is resized to; what is
    then larger than `size` is cropped. (0.1, 2.0) is large-scale jitter (arXiv:2012.07177), (0.6, 1.0) multi-scale
    training without crops."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip."""
    color: NonNegativeFloat = 0.2
    """Strength of brightness, contrast, saturation and hue jitter."""
