"""Settings of region distillation, which configs embed."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from ovd.model.crop_options import CropOptions


class RegionOptions(CropOptions):
    """Settings of the loss `distill`, which pulls class embeddings towards CLIP's of crops (region_distillation.py)."""

    weight: PositiveFloat = 0.5
    """Weight of the loss."""
    boxes: PositiveInt = 8
    """Maximum number of predicted boxes per image whose crops CLIP embeds, those with the best scores."""
    points: PositiveInt = 4
    """Maximum number of points per box that are pulled towards the crop's embedding, those with the best scores."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Score above which boxes are used; the score is sqrt(highest class probability x quality)."""
