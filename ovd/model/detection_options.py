"""The settings of post-processing, which configs extend."""

from pydantic import Field, NonNegativeFloat, PositiveInt

from ovd.section import Section


class DetectionOptions(Section):
    """Settings of post-processing (postprocess.py)."""

    score_threshold: NonNegativeFloat = 0.0
    """Only boxes that score more are kept."""
    nms_iou: float = Field(default=0.6, gt=0, le=1)
    """Non-maximum suppression: IoU above which the lower-scoring of two boxes of one class is dropped."""
    max_detections: PositiveInt = 1000
    """Maximum number of boxes per image, the best ones."""
    candidates: PositiveInt = 2000
    """Number of (point, class) pairs per image that enter non-maximum suppression, those with the best scores."""
