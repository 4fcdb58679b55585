"""The settings of post-processing, which configs extend."""

from pydantic import Field, NonNegativeFloat, PositiveInt

from ovd.section import Section


class DetectionOptions(Section):
    """How scores become boxes (postprocess.py)."""

    score_threshold: NonNegativeFloat = 0.0
    """Only boxes that score more are kept."""
    nms_iou: float = Field(default=0.6, gt=0, le=1)
    """Overlap above which the weaker of two boxes of one class is dropped."""
    max_detections: PositiveInt = 1000
    """Boxes kept per image, the best ones."""
    candidates: PositiveInt = 2000
    """Highest-scoring (point, class) pairs of an image that enter non-maximum suppression."""
