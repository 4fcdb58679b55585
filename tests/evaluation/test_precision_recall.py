"""Metrics from precision-recall curves against loops over classes."""

import numpy as np
import pytest

from ovd.evaluation.precision_recall import AREA_RANGES, PrecisionRecall

NUM_CLASSES, WITHOUT_BOX = 4, 2


@pytest.fixture
def curves() -> PrecisionRecall:
    """Random curves at ten IoUs and three limits of detections, for four classes, one of which has no true box."""
    rng = np.random.default_rng(0)
    precision, recall = rng.random((10, 101, NUM_CLASSES, 4)), rng.random((10, NUM_CLASSES, 4, 3))
    precision[:, :, WITHOUT_BOX] = recall[:, WITHOUT_BOX] = -1
    return PrecisionRecall(precision, recall)


@pytest.mark.parametrize(("iou_percent", "rows"), [(None, range(10)), (50, [0]), (75, [5]), (95, [9])])
@pytest.mark.parametrize("area", AREA_RANGES)
def test_average_precision_is_the_mean_over_classes_with_boxes(curves, iou_percent, rows, area):
    column = AREA_RANGES.index(area)
    of_classes = [np.mean([curves.precision[row, :, k, column] for row in rows]) for k in (0, 1, 3)]
    found = curves.average_precision(iou_percent=iou_percent, area=area)
    assert found == pytest.approx(np.mean(of_classes))
    two = curves.average_precision(iou_percent=iou_percent, area=area, categories=np.array([1, WITHOUT_BOX]))
    assert two == pytest.approx(of_classes[1])
    assert curves.average_precision(iou_percent=iou_percent, area=area, categories=np.array([WITHOUT_BOX])) == -1
    if area == "all":
        expected = [*of_classes[:2], -1, of_classes[2]]
        np.testing.assert_allclose(curves.class_average_precisions(iou_percent=iou_percent), expected)


def test_recalls_of_classes_are_at_the_largest_limit_and_others_at_the_asked_one(curves):
    expected = [curves.recall[:, k, 0, 2].mean() if k != WITHOUT_BOX else -1 for k in range(NUM_CLASSES)]
    np.testing.assert_allclose(curves.class_average_recalls(), expected)
    for limit in range(3):
        assert curves.average_recall(limit=limit) == pytest.approx(curves.recall[:, [0, 1, 3], 0, limit].mean())
    by_area = [curves.recall[:, [0, 1, 3], column, 2].mean() for column in (1, 2, 3)]
    assert curves.recalls_by_area() == pytest.approx(dict(zip(("ARs", "ARm", "ARl"), by_area, strict=True)))


def test_curves_are_of_objects_of_all_sizes(curves):
    np.testing.assert_array_equal(curves.class_curves(iou_percent=60), curves.precision[2, :, :, 0].T)
    known = curves.precision[2][:, [0, 3], 0].mean(axis=1)
    np.testing.assert_allclose(curves.curve(iou_percent=60, categories=np.array([0, WITHOUT_BOX, 3])), known)
    assert (curves.curve(iou_percent=60, categories=np.array([WITHOUT_BOX])) == -1).all()
