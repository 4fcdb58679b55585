"""The report's metrics against plain averages over the same curves, and its files."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovd.data.annotations import load_truth
from ovd.evaluation.lvis import LVISEvaluator
from ovd.evaluation.precision_recall import PrecisionRecall
from ovd.evaluation.report import Curve, Evaluation, ProtocolMetrics, draw_curves, format_table, write_report
from ovd.evaluation.results import Results
from ovd.visualize.palette import GROUP_COLORS


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Annotations of one image with two cups (rare) and a jar (frequent), and a third class without boxes."""
    path = tmp_path / "annotations.json"
    image = {"id": 1, "neg_category_ids": [9], "not_exhaustive_category_ids": []}
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 4, "bbox": [0, 0, 10, 20], "area": 200},
        {"id": 2, "image_id": 1, "category_id": 4, "bbox": [50, 0, 10, 20], "area": 200},
        {"id": 3, "image_id": 1, "category_id": 7, "bbox": [0, 50, 40, 20], "area": 800},
    ]
    categories = [
        {"id": 7, "name": "jar, glass", "frequency": "f"},
        {"id": 4, "name": "cup", "frequency": "r"},
        {"id": 9, "name": "owl", "frequency": "c"},
    ]
    path.write_text(json.dumps({"images": [image], "annotations": boxes, "categories": categories}))
    return path


@pytest.fixture
def evaluation(annotations: Path) -> Evaluation:
    """Evaluation of three detections: one cup found exactly, the jar at IoU 0.725, and a false owl."""
    evaluator = LVISEvaluator(load_truth(annotations, format="lvis"), ())
    results = Results(
        image_ids=np.array([1, 1, 1]),
        category_ids=np.array([4, 7, 9]),
        boxes_xywh=np.array([[0.0, 0, 10, 20], [0, 50, 29, 20], [0, 0, 5, 5]]),
        scores=np.array([0.9, 0.8, 0.7]),
    )
    evaluator.add_results(results, source="results")
    return evaluator.evaluate()


def test_class_rows_hold_what_can_be_counted_by_hand(evaluation):
    cup, jar, owl = evaluation.classes
    assert [row.category_id for row in evaluation.classes] == [4, 7, 9]
    assert (cup.name, cup.frequency, cup.num_true_boxes, cup.num_detections) == ("cup", "r", 2, 1)
    # One of two is found, none falsely, so the precision is 1 at the 51 recall points up to 0.5.
    assert pytest.approx((51 / 101, 51 / 101, 0.5)) == (cup.AP, cup.AP50, cup.AR)
    # IoU 0.725 passes 5 of the 10 thresholds.
    assert pytest.approx((0.5, 1.0, 0.5)) == (jar.AP, jar.AP50, jar.AR)
    assert (owl.num_true_boxes, owl.num_detections, owl.AP, owl.AP50, owl.AR) == (0, 1, -1, -1, -1)


def test_metrics_are_means_over_class_rows(evaluation):
    cup, jar, _ = evaluation.classes
    metrics = evaluation.metrics
    assert metrics["AP"] == pytest.approx((cup.AP + jar.AP) / 2)
    assert metrics["AP50"] == pytest.approx((cup.AP50 + jar.AP50) / 2)
    assert metrics["AR@300"] == pytest.approx((cup.AR + jar.AR) / 2)
    assert (metrics["APr"], metrics["APf"], metrics["APc"]) == pytest.approx((cup.AP, jar.AP, -1))


def test_curves_average_to_ap50_of_their_group(evaluation):
    curves = {curve.label: curve.precision for curve in evaluation.curves}
    cup, jar, _ = evaluation.classes
    assert list(curves) == ["all", "rare", "common", "frequent"]
    assert curves["all"].mean() == pytest.approx(evaluation.metrics["AP50"])
    assert curves["rare"].mean() == pytest.approx(cup.AP50)
    assert curves["frequent"].mean() == pytest.approx(jar.AP50)
    assert curves["rare"].tolist() == pytest.approx([1.0] * 51 + [0.0] * 50)
    assert (curves["common"] == -1).all()


def test_thresholds_areas_and_limits_are_read_from_their_axes():
    rng = np.random.default_rng(0)
    precision, recall = rng.random((10, 101, 3, 4)), rng.random((10, 3, 4, 2))
    precision[:, :, 1, :] = recall[:, 1, :, :] = -1  # a class without true boxes
    figures = PrecisionRecall(precision, recall)
    known = [0, 2]
    assert figures.average_precision() == pytest.approx(precision[:, :, known, 0].mean())
    assert figures.average_precision(iou_percent=75) == pytest.approx(precision[5, :, known, 0].mean())
    assert figures.average_precision(area="large") == pytest.approx(precision[:, :, known, 3].mean())
    assert figures.average_precision(categories=np.array([2])) == pytest.approx(precision[:, :, 2, 0].mean())
    assert figures.average_precision(categories=np.array([1])) == -1
    assert figures.average_recall(limit=0) == pytest.approx(recall[:, known, 0, 0].mean())
    assert figures.average_recall() == pytest.approx(recall[:, known, 0, 1].mean())
    one_class = figures.curve(iou_percent=50, categories=np.array([2]))
    np.testing.assert_allclose(one_class, precision[0, :, 2, 0])
    np.testing.assert_allclose(figures.curve(iou_percent=75), precision[5, :, known, 0].mean(axis=0))


@pytest.mark.pictures
def test_files_hold_the_evaluation(evaluation, tmp_path):
    for _ in range(2):  # a second run replaces the first
        write_report(evaluation, tmp_path / "a" / "report")
    folder = tmp_path / "a" / "report"

    summary = json.loads((folder / "metrics.json").read_text())
    assert summary["metrics"] == evaluation.metrics
    assert summary["engine"] == "hotcoco"
    named = [name for names in summary["protocols"].values() for name in names]
    assert named == list(evaluation.metrics)
    with (folder / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["cup", "jar, glass", "owl"]
    assert [float(row["AP"]) for row in rows] == [row.AP for row in evaluation.classes]
    assert list(rows[0]) == ["category_id", "name", "frequency", "num_true_boxes", "num_detections", "AP", "AP50", "AR"]
    with Image.open(folder / "precision_recall.png") as image:
        assert image.format == "PNG"
        assert np.ptp(np.asarray(image.convert("L"))) > 100
    assert (folder / "metrics.txt").read_text() == format_table(evaluation)
    assert len(list(folder.iterdir())) == 4


def test_table_puts_the_protocol_above_aligned_figures():
    evaluation = Evaluation(
        engine="official",
        sections=(
            ProtocolMetrics("some protocol", {"AP": 0.12345, "AR@300": 1.0, "APr": -1.0}),
            ProtocolMetrics("other", {"B": 0.5}),
        ),
        notes=("3 detections",),
        classes=(),
        curves=(),
    )
    assert format_table(evaluation) == (
        "some protocol (percent; engine official)\n"
        "   AP  AR@300  APr\n"
        "12.35  100.00    -\n"
        "\n"
        "other (percent; engine official)\n"
        "    B\n"
        "50.00\n"
        "\n"
        "- 3 detections\n"
    )


def test_drawing_keeps_each_curve_and_no_global_figure(evaluation):
    figure = draw_curves(evaluation)
    axes = figure.axes[0]
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines()}
    assert list(drawn) == ["all", "rare", "common (no true box)", "frequent"]
    np.testing.assert_array_equal(drawn["rare"], evaluation.curves[1].precision)
    assert {line.get_label(): line.get_color() for line in axes.get_lines()}["rare"] == GROUP_COLORS["rare"]
    assert len(drawn["common (no true box)"]) == 0
    assert axes.get_title() == "LVIS box AP, ordinary, 300 per image, federated"
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.pictures
def test_an_evaluation_without_curves_still_draws(tmp_path):
    nothing = Evaluation("hotcoco", (ProtocolMetrics("p", {"AP": -1.0}),), (), (), (Curve("all", np.full(101, -1.0)),))
    write_report(nothing, tmp_path)
    assert (tmp_path / "precision_recall.png").stat().st_size > 0
