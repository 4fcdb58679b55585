"""Averages of precision and recall that the COCO and LVIS protocols share.

-1 means that there is no true box: such classes are left out of a mean, and a mean over none is -1, as in the reference
evaluators.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ovd.shapes import Float, Float64, Int64

RECALL_POINTS = np.linspace(0.0, 1.0, 101)
"""Recall values at which curves are sampled."""
AREA_RANGES = ("all", "small", "medium", "large")
"""Ranges of the true object's area in pixels: small below 32 x 32, large above 96 x 96."""
_FIRST_IOU, _IOU_STEP = 50, 5


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of an evaluation.

    The axes are T IoU thresholds (0.50 to 0.95), R recall points, K categories by ascending id, A area ranges and M
    limits of detections.
    """

    precision: Float64[np.ndarray, "T R K A"]
    """Precision at the largest limit of detections."""
    recall: Float64[np.ndarray, "T K A M"]
    """Highest recall reached, for each limit of detections in ascending order."""

    def average_precision(
        self,
        *,
        iou_percent: int | None = None,
        area: str = "all",
        categories: Int64[np.ndarray, " G"] | slice = slice(None),
    ) -> float:
        """Average precision over recall points and categories, at one IoU threshold or over all; 0 to 1, or -1.

        Args:
            iou_percent: 50, 55 .. 95; None averages over all of them.
            categories: positions on the K axis.
        """
        thresholds = slice(None) if iou_percent is None else [_threshold(iou_percent)]
        return mean_of_valid(self._over_recalls[thresholds][:, categories, AREA_RANGES.index(area)])

    def average_precisions(self) -> dict[str, float]:
        """Compute `average_precision` over all IoU thresholds, at 0.50 and 0.75, and for small, medium and large
        objects: `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`."""
        return {
            "AP": self.average_precision(),
            "AP50": self.average_precision(iou_percent=50),
            "AP75": self.average_precision(iou_percent=75),
            **{f"AP{area[0]}": self.average_precision(area=area) for area in AREA_RANGES[1:]},
        }

    def class_average_precisions(self, *, iou_percent: int | None = None) -> Float64[np.ndarray, " K"]:
        """Compute `average_precision` of each category; -1 for a category without a true box."""
        thresholds = slice(None) if iou_percent is None else [_threshold(iou_percent)]
        return _row_means_of_valid(self._over_recalls[thresholds, :, 0].T)

    @cached_property
    def _over_recalls(self) -> Float64[np.ndarray, "T K A"]:
        """Mean precision over the recall points; a class without a true box is -1 at all of them."""
        return self.precision.mean(axis=1)

    def class_average_recalls(self) -> Float64[np.ndarray, " K"]:
        """Average each category's recall over IoU thresholds, at the largest limit; -1 for one without a true box."""
        return _row_means_of_valid(self.recall[:, :, 0, -1].T)

    def average_recall(self, *, limit: int = -1, area: str = "all") -> float:
        """Average recall over IoU thresholds and categories.

        Args:
            limit: position of the limit of detections on the M axis.
        """
        return mean_of_valid(self.recall[:, :, AREA_RANGES.index(area), limit])

    def recalls_by_area(self) -> dict[str, float]:
        """Compute `average_recall` of small, medium and large objects at the largest limit: `ARs`, `ARm`, `ARl`."""
        return {f"AR{area[0]}": self.average_recall(area=area) for area in AREA_RANGES[1:]}

    def curve(
        self, *, iou_percent: int, categories: Int64[np.ndarray, " G"] | slice = slice(None)
    ) -> Float64[np.ndarray, " R"]:
        """Average precision at each recall point over the categories that have true boxes; -1 if none has."""
        return _row_means_of_valid(self.precision[_threshold(iou_percent), :, :, 0][:, categories])

    def class_curves(self, *, iou_percent: int) -> Float64[np.ndarray, "K R"]:
        """Return the curve of each category; -1 for a category without a true box."""
        return self.precision[_threshold(iou_percent), :, :, 0].T


def mean_of_valid(values: Float[np.ndarray, "..."]) -> float:
    """Compute the mean of the entries that are not -1; -1 if all are."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _row_means_of_valid(values: Float64[np.ndarray, "K ..."]) -> Float64[np.ndarray, " K"]:
    """Compute `mean_of_valid` of each row, for all rows at once."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    known = rows > -1
    counts = known.sum(axis=1)
    return np.divide(np.where(known, rows, 0.0).sum(axis=1), counts, out=np.full(len(rows), -1.0), where=counts > 0)


def _threshold(iou_percent: int) -> int:
    return (iou_percent - _FIRST_IOU) // _IOU_STEP
