"""Settings of post-processing, which configs extend."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from ovd.model.crop_options import CropOptions
from ovd.section import Section


class SecondLookOptions(CropOptions):
    """Settings of the second look: CLIP embeds crops of the best boxes and helps to name them (crop_encoder.py)."""

    crops: PositiveInt = 20
    """Maximum number of boxes per image whose crops CLIP embeds, those with the best scores."""
    weight: float = Field(default=0.4, gt=0, le=1)
    """Weight of the crop's cosine with a name; the detector's cosine has the weight 1 - `weight`."""


class DetectionOptions(Section):
    """Settings of post-processing (postprocess.py)."""

    score_threshold: NonNegativeFloat = 0.0
    """Score above which boxes are kept."""
    nms_iou: float = Field(default=0.6, gt=0, le=1)
    """IoU above which non-maximum suppression drops the lower-scoring of two boxes of one class."""
    max_detections: PositiveInt = 1000
    """Maximum number of boxes per image, those with the best scores."""
    candidates: PositiveInt = 2000
    """Number of (point, class) pairs per image that enter non-maximum suppression, those with the best scores."""
    competition: NonNegativeFloat = 0.0
    """Factor of the cosines in a softmax over all queried names. A point's scores are multiplied by this softmax, so
    that names compete for the point and a name's score depends on the others. 0 leaves it out."""
    competition_power: PositiveFloat = 0.5
    """Exponent of the softmax of `competition`."""
    one_name_per_place: float | None = Field(default=None, gt=0, lt=1)
    """IoU above which the lower-scoring of two boxes of any classes is dropped; by default only `nms_iou` is used."""
    prefilter: float | None = Field(default=None, gt=0, lt=1)
    """Share of the points at which all names are scored: the points with the best scores for a sample of the names.
    For tens of thousands of names, 0.15 for example; docs/speed.md has the share of boxes that is kept. By default
    all points are used."""
    second_look: SecondLookOptions | None = None
    """Settings of the second look, in which CLIP embeds crops of the best boxes and helps to name them; none by
    default."""

    def with_prefilter(self, share: float) -> "DetectionOptions":
        """Return these settings with another `prefilter`.

        Raises:
            ValueError: the share is not between 0 and 1.
        """
        try:
            DetectionOptions(prefilter=share)
        except ValidationError:
            raise ValueError(f"prefilter is {share}; it must be a share of the points, between 0 and 1") from None
        return self.model_copy(update={"prefilter": share})

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield the fields of the repr; later options only if set, since ledgers of pseudo-labels hold the repr."""
        later = ("competition", "competition_power", "one_name_per_place", "prefilter", "second_look")
        for name, value in super().__repr_args__():
            if name not in later or value != type(self).model_fields[name].default:
                yield name, value
