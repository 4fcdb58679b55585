"""Settings of the crops that CLIP embeds, which other sections extend."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from ovd.section import Section


class CropOptions(Section):
    """Settings of the crops of boxes that CLIP embeds (crop_encoder.py)."""

    crop: PositiveInt | None = None
    """Side in pixels that a crop is resized to; by default CLIP's own input size, and 64 for the tiny CLIP."""
    views: Annotated[tuple[tuple[PositiveFloat, PositiveFloat], ...], Field(min_length=1)] = ((1.1, 1.0),)
    """Crops of a box, whose embeddings are averaged. Each is a pair: the side of the square that is cut out, as a
    multiple of the box's longer side, and the side that it is resized to, as a multiple of `crop`."""
