"""The truth that decisions are judged by, AP on the exhaustive truth, and the written files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_data import data_of
from PIL import Image
from test_decisions import NUM_CLASSES, make_results, make_truth

from ovd.build.data import load_evaluation_index
from ovd.data.annotations import exhaustive_truth, load_truth
from ovd.data.category import Category
from ovd.data.report import DataError, DataReport
from ovd.data.truth import Truth
from ovd.evaluation.coco import COCOEvaluator, exhaustive_metrics
from ovd.evaluation.decision_report import draw_reliability, format_decisions, measure_decisions, write_decisions
from ovd.evaluation.decisions import DecisionEvaluator
from ovd.evaluation.groups import base_and_novel
from ovd.evaluation.results import Results
from ovd.evaluation.results_file import write_results
from ovd.evaluation.run import evaluate_results_file
from ovd.visualize.palette import GROUP_COLORS


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Folder with the annotations of a world of two images, some of whose boxes are hidden; no image is drawn."""
    folder = tmp_path_factory.mktemp("world")
    categories = [
        {"id": row + 1, "name": name, "synonyms": [name], "frequency": frequency, "image_count": 1}
        for row, (name, frequency) in enumerate((("anchor", "r"), ("gear", "c"), ("owl", "f")))
    ]
    images = [
        {"id": number, "height": 100, "width": 150, "coco_url": f"http://x/val/{number}.jpg",
         "neg_category_ids": [2] if number == 2 else [], "not_exhaustive_category_ids": [1] if number == 1 else []}
        for number in (1, 2)
    ]  # fmt: skip

    def rows(*objects: tuple[int, int, list[float]]) -> list[dict[str, Any]]:
        return [
            {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3]}
            for number, (image, category, box) in enumerate(objects, start=1)
        ]

    shown = rows((1, 1, [10, 10, 20, 30]), (1, 2, [50, 10, 20, 30]), (2, 3, [100, 60, 40, 20]))
    hidden = rows((1, 1, [90, 10, 20, 30]), (2, 1, [5, 5, 40, 10]))
    content = {"images": images, "annotations": shown, "categories": categories}
    (folder / "lvis_val.json").write_text(json.dumps(content))
    (folder / "hidden_val.json").write_text(json.dumps({"annotations": hidden, "categories": categories}))
    return folder


def all_found(truth: Truth) -> Results:
    return Results(truth.image_ids, truth.category_ids, truth.boxes_xywh, np.full(len(truth.image_ids), 0.9))


def decisions_in(folder: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / "decisions.json").read_text())
    return {item["group"]: item for item in content["groups"]} | {"report": content}


def test_the_exhaustive_truth_has_the_shown_and_the_hidden_boxes(world):
    federated = load_truth(world / "lvis_val.json", format="lvis")
    truth = exhaustive_truth(federated, "lvis")
    assert truth is not None
    assert not truth.is_federated
    assert all(image.negative_category_ids == image.not_exhaustive_category_ids == () for image in truth.images)
    found = sorted(zip(truth.image_ids.tolist(), truth.category_ids.tolist(), truth.boxes_xywh.tolist(), strict=True))
    assert found == [
        (1, 1, [10, 10, 20, 30]), (1, 1, [90, 10, 20, 30]), (1, 2, [50, 10, 20, 30]), (2, 1, [5, 5, 40, 10]),
        (2, 3, [100, 60, 40, 20]),
    ]  # fmt: skip
    assert truth.areas_px.tolist() == truth.boxes_xywh[:, 2:].prod(axis=1).tolist()
    index = load_evaluation_index(world / "lvis_val.json", world, "lvis", report=DataReport())
    assert index.exhaustive_truth is not None
    np.testing.assert_array_equal(index.exhaustive_truth.boxes_xywh, truth.boxes_xywh)


def test_a_drawn_world_hides_boxes(miniature_world):
    content = json.loads((miniature_world / "annotations" / "hidden_train.json").read_text())
    assert content["annotations"]
    index = load_evaluation_index(
        miniature_world / "annotations" / "lvis_train.json", miniature_world / "images", "lvis", report=DataReport()
    )
    assert index.truth is not None
    assert index.exhaustive_truth is not None
    assert len(index.exhaustive_truth.image_ids) == len(index.truth.image_ids) + len(content["annotations"])


def test_other_federated_files_have_no_exhaustive_truth_and_other_formats_are_exhaustive(world, tmp_path):
    (tmp_path / "lvis_val.json").write_text((world / "lvis_val.json").read_text())
    federated = load_truth(tmp_path / "lvis_val.json", format="lvis")
    assert exhaustive_truth(federated, "lvis") is None
    (tmp_path / "hidden_v1.json").write_text("{}")
    (tmp_path / "v1.json").write_text((world / "lvis_val.json").read_text())
    assert exhaustive_truth(load_truth(tmp_path / "v1.json", format="lvis"), "lvis") is None
    as_coco = load_truth(world / "lvis_val.json", format="coco")
    assert exhaustive_truth(as_coco, "coco") is as_coco


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("[{", "F1"),
        ('{"annotations": [{"image_id": 1}]}', "F1"),
        ('{"annotations": [{"image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1], "area": 1}]}', "F3"),
        ('{"annotations": [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1}]}', "F3"),
    ],
)
def test_a_faulty_hidden_file_is_named(content, code, world, tmp_path):
    (tmp_path / "lvis_val.json").write_text((world / "lvis_val.json").read_text())
    (tmp_path / "hidden_val.json").write_text(content)
    truth = load_truth(tmp_path / "lvis_val.json", format="lvis")
    with pytest.raises(DataError, match=r"hidden_val\.json") as error:
        exhaustive_truth(truth, "lvis")
    assert error.value.code == code


def test_a_results_file_of_the_world_is_judged_by_the_exhaustive_truth(world, tmp_path, capsys):
    truth = exhaustive_truth(load_truth(world / "lvis_val.json", format="lvis"), "lvis")
    assert truth is not None
    write_results(tmp_path / "results.json", all_found(truth))
    metrics = evaluate_results_file(world / "lvis_val.json", tmp_path / "results.json", "lvis", output_dir=tmp_path)
    names = ["AP_exhaustive", "APr_exhaustive", "APc_exhaustive", "APf_exhaustive"]
    assert [metrics[name] for name in names] == pytest.approx([1] * 4)
    found = decisions_in(tmp_path)
    assert found["report"]["is_exhaustive"]
    assert list(found) == ["all", "base", "rare", "report"]
    for group, num_classes in (("all", 3), ("base", 2), ("rare", 1)):
        item = found[group]
        assert (item["num_classes"], item["pmF1"], item["recall"], item["absent_per_image"]) == (num_classes, 1, 1, 0)
    # A class that is in both images is never absent, so its presence has no correlation.
    assert (found["rare"]["cgF1"], found["base"]["cgF1"]) == (None, 100)
    assert found["all"]["Brier"] == pytest.approx(0.01)
    assert found["all"]["ECE"] == pytest.approx(0.1)
    # Without the hidden boxes, the world's annotations are judged as federated.
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "lvis_val.json").write_text((world / "lvis_val.json").read_text())
    metrics = evaluate_results_file(lone / "lvis_val.json", tmp_path / "results.json", "lvis", output_dir=lone)
    assert not set(names) & metrics.keys()
    assert not decisions_in(lone)["report"]["is_exhaustive"]
    printed = capsys.readouterr().out
    assert "judged for all classes in all images" in printed
    assert "judged for each image's positives and verified negatives" in printed


@pytest.mark.parametrize("engine", ["hotcoco", "official"])
def test_exhaustive_ap_is_coco_ap_of_each_frequency(engine):
    truth = make_truth()
    results = make_results(truth)
    found = exhaustive_metrics(truth, results, engine=engine).metrics
    evaluator = COCOEvaluator(truth, ())
    evaluator.add_results(results, source="results")
    rows = [row for row in evaluator.evaluate().classes if row.AP > -1]
    for name, letters in (("AP", "rcf"), ("APr", "r"), ("APc", "c"), ("APf", "f")):
        expected = np.mean([row.AP for row in rows if row.frequency in letters])
        assert found[f"{name}_exhaustive"] == pytest.approx(expected)
        assert 0 < expected < 1


def category(name: str, frequency: Any) -> Category:
    return Category(1, name, (), frequency, 1)


def test_groups_are_those_of_the_frequencies_or_of_the_benchmark():
    some = [category("a", "r"), category("b", "c"), category("c", "f"), category("d", None)]
    masks = {group: mask.tolist() for group, mask in base_and_novel(some).items()}
    assert masks == {
        "all": [True] * 4, "base": [False, True, True, False], "rare": [True, False, False, False],
    }  # fmt: skip
    assert list(base_and_novel([category("a", None)])) == ["all"]
    assert list(base_and_novel([])) == ["all"]
    named = base_and_novel(some, {"base": {"a", "d"}, "novel": {"b"}})
    assert {group: mask.tolist() for group, mask in named.items()} == {
        "all": [True] * 4, "base": [True, False, False, True], "novel": [False, True, False, False],
    }  # fmt: skip


def test_thresholds_are_chosen_on_base_classes_or_on_all():
    truth = make_truth()
    results = make_results(truth)
    groups = base_and_novel(truth.categories)
    report = measure_decisions(truth, results, groups)
    assert report.chosen_on == "base"
    base = DecisionEvaluator(truth, results, base=groups["base"])
    assert report.thresholds == base.thresholds()
    assert [item.decisions for item in report.groups] == [
        base.decide(mask, report.thresholds) for mask in groups.values()
    ]
    silent = replace(truth, categories=tuple(replace(one, frequency=None) for one in truth.categories))
    report = measure_decisions(silent, results, base_and_novel(silent.categories))
    assert report.chosen_on == "all"
    everything = DecisionEvaluator(truth, results, base=np.ones(NUM_CLASSES, bool))
    assert report.thresholds == everything.thresholds()


def test_an_own_threshold_below_the_floor_is_judged_at_and_low_scores_are_warned_of():
    truth = make_truth()
    real = ~truth.crowd
    low = Results(truth.image_ids[real], truth.category_ids[real], truth.boxes_xywh[real], np.full(real.sum(), 0.045))
    report = measure_decisions(truth, low, {"all": np.ones(NUM_CLASSES, bool)}, own_threshold=0.04)
    (of_all,) = report.groups
    assert of_all.at_own_threshold is not None
    assert (of_all.at_own_threshold.pmF1, of_all.decisions.pmF1, of_all.reliability.recall) == (1, 0, 0)
    without = measure_decisions(truth, low, {"all": np.ones(NUM_CLASSES, bool)})
    assert without.groups[0].decisions.pmF1 == 0
    assert "all scores are below 0.05" in format_decisions(without)


def test_at_an_own_threshold_of_zero_only_detected_classes_are_reported():
    truth = make_truth()
    results = make_results(truth)
    everything = {"all": np.ones(NUM_CLASSES, bool)}
    (at_zero,), (just_above,) = (
        measure_decisions(truth, results, everything, own_threshold=threshold).groups for threshold in (0.0, 1e-9)
    )
    assert at_zero.at_own_threshold == just_above.at_own_threshold
    assert at_zero.at_own_threshold is not None
    assert at_zero.at_own_threshold.pmF1 is not None
    assert 0 < at_zero.at_own_threshold.pmF1 < 1


def test_a_table_has_a_dash_for_what_is_not_known():
    truth = make_truth()
    none = truth.restrict(np.zeros(0, np.int64), np.zeros(0, np.int64))
    nothing = replace(none, categories=truth.categories)
    report = measure_decisions(nothing, make_results(truth).take(np.zeros(0, np.int64)), {"all": np.ones(5, bool)})
    lines = format_decisions(report).splitlines()
    assert lines[2].split()[2:] == ["-", "-", "-", "-", "0.00", "-", "-", "-"]
    assert len(lines[1]) == len(lines[2])
    assert any("no cgF1 and IL_MCC" in line for line in lines)
    assert "- no pmF1, cgF1 and recall without a true box that counts" in lines


def test_a_table_has_no_negative_zero():
    truth = make_truth()
    report = measure_decisions(truth, make_results(truth), {"all": np.ones(5, bool)})
    group = report.groups[0]
    wrong = replace(group, decisions=replace(group.decisions, cgF1=-0.0, cgF1_50_95=-0.04, IL_MCC=-0.058))
    row = format_decisions(replace(report, groups=(wrong,))).splitlines()[2].split()
    assert (row[2], row[3], row[5]) == ("0.0", "0.0", "-0.058")


@pytest.mark.pictures
def test_files_and_table(tmp_path):
    truth = make_truth()
    results = make_results(truth)
    report = measure_decisions(truth, results, base_and_novel(truth.categories))
    for _ in range(2):
        write_decisions(report, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"decisions.json", "reliability.png"}
    stored = decisions_in(tmp_path / "run")
    for item in report.groups:
        row = stored[item.group]
        assert row["cgF1"] == item.decisions.cgF1
        assert row["IL_MCC"] == item.decisions.IL_MCC
        assert (row["ECE"], row["Brier"]) == (item.reliability.error, item.reliability.brier)
        assert row["reliability"]["scores"] == item.reliability.scores.tolist()
    assert tuple(stored["report"]["thresholds"]) == report.thresholds
    table = [line.split() for line in format_decisions(report).splitlines()]
    rare = report.groups[2]
    made, scores = rare.decisions, rare.reliability
    assert table[4] == [
        "rare", "2", f"{made.cgF1:.1f}", f"{made.cgF1_50_95:.1f}", f"{made.pmF1:.3f}", f"{made.IL_MCC:.3f}",
        f"{made.absent_per_image:.2f}", f"{scores.error:.3f}", f"{scores.brier:.3f}", f"{scores.recall:.3f}",
    ]  # fmt: skip
    assert len(table[1]) == len(table[4])
    with Image.open(tmp_path / "run" / "reliability.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_decisions_at_the_detectors_own_threshold_stand_beside_the_others(tmp_path):
    truth = make_truth()
    results = make_results(truth)
    groups = base_and_novel(truth.categories)
    without, report = (
        measure_decisions(truth, results, groups),
        measure_decisions(truth, results, groups, own_threshold=0.5),
    )
    assert replace(report, groups=without.groups, own_threshold=None) == without
    evaluator = DecisionEvaluator(truth, results, base=groups["base"])
    for item in report.groups:
        assert item.at_own_threshold == evaluator.decide(groups[item.group], (0.5, 0.5))
    table = format_decisions(report)
    assert sum(line.split()[1:2] == ["own"] for line in table.splitlines()) == len(report.groups)
    assert "own threshold, 0.500" in table
    assert "own threshold" not in format_decisions(without)
    write_decisions(report, tmp_path)
    stored = decisions_in(tmp_path)
    assert stored["report"]["own_threshold"] == 0.5
    assert stored["rare"]["at_own_threshold"]["IL_MCC"] == evaluator.decide(groups["rare"], (0.5, 0.5)).IL_MCC


def test_the_reliability_plot_has_a_curve_for_each_group_and_the_diagonal():
    truth = make_truth()
    results = make_results(truth)
    groups = base_and_novel(truth.categories)
    report = measure_decisions(truth, results, groups)
    _, *lines = draw_reliability(report).axes[0].get_lines()
    for line, item in zip(lines, report.groups, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), item.reliability.scores)
        np.testing.assert_array_equal(line.get_ydata(), item.reliability.outcomes)
        assert str(line.get_label()).startswith(f"{item.group}, ECE")
        assert line.get_color() == GROUP_COLORS[item.group]
    nothing = measure_decisions(truth, results.take(np.zeros(0, np.int64)), groups)
    labels = [str(line.get_label()) for line in draw_reliability(nothing).axes[0].get_lines()]
    assert labels[1:] == ["all (no detection)", "base (no detection)", "rare (no detection)"]


@pytest.mark.pictures
@pytest.mark.parametrize("engine", ["hotcoco", "official"])
def test_the_largest_scores_leave_ap_as_it_is_and_are_said(engine, world, tmp_path, capsys):
    """Evaluators accept any finite score, so AP and decisions are those of smaller scores in the same order."""
    truth = exhaustive_truth(load_truth(world / "lvis_val.json", format="lvis"), "lvis")
    assert truth is not None
    moved = truth.boxes_xywh + np.arange(5)[:, None] * [1, 1, 0, 0]
    small = Results(truth.image_ids, truth.category_ids, moved, np.array([0.5, 0.9, 0.6, 0.7, 1.0]))
    found, metrics = {}, {}
    for name, results in (("small", small), ("large", replace(small, scores=1.7e308 * small.scores))):
        write_results(tmp_path / "results.json", results)
        metrics[name] = evaluate_results_file(
            world / "lvis_val.json", tmp_path / "results.json", "lvis", engine, tmp_path / name,
            images=world, html=True,
        )  # fmt: skip
        found[name] = decisions_in(tmp_path / name)["all"]
    assert metrics["small"] == metrics["large"]
    assert 0 < metrics["large"]["AP"] < 1
    assert [found[name]["cgF1"] for name in found] == [found["small"]["cgF1"]] * 2
    assert (found["large"]["ECE"], found["large"]["Brier"]) == (None, None)
    assert found["small"]["Brier"] is not None
    printed = capsys.readouterr().out
    assert "WARNING: scores are from 8.5e+307 to 1.7e+308" in printed
    assert max(map(len, printed.splitlines())) < 300
    page = data_of(tmp_path / "large" / "report.html")
    assert page["reliability"]["groups"][0]["error"] is None
    drawn = {box[-1] for image in page["images"]["worst"] for box in image["boxes"] if box[-1] is not None}
    assert set() < drawn <= {*(1.7e308 * small.scores).tolist()}
    words = [str(line.get_label()) for line in draw_reliability(
        measure_decisions(truth, replace(small, scores=2 * small.scores), base_and_novel(truth.categories))
    ).axes[0].get_lines()]  # fmt: skip
    assert words[1:] == ["all (scores above 1)", "base (scores above 1)", "rare (scores above 1)"]


def test_scores_of_zero_are_said():
    truth = make_truth()
    results = make_results(truth)
    groups = base_and_novel(truth.categories)
    warning = measure_decisions(truth, replace(results, scores=np.zeros(len(results))), groups).warning
    assert warning is not None
    assert warning.startswith("all scores are below 0.05")
    assert measure_decisions(truth, results.take(np.zeros(0, np.int64)), groups).warning is None


@pytest.mark.parametrize(("scale", "offset"), [(100, 0), (1, -1)])
def test_scores_that_are_no_probabilities_are_said(scale, offset, world, tmp_path, capsys):
    truth = load_truth(world / "lvis_val.json", format="lvis")
    found = all_found(truth)
    for name, results in (("own", found), ("other", replace(found, scores=scale * found.scores + offset))):
        write_results(tmp_path / "results.json", results)
        metrics = evaluate_results_file(
            world / "lvis_val.json", tmp_path / "results.json", "lvis", output_dir=tmp_path / name, html=True
        )
        printed = capsys.readouterr().out
        assert metrics["AP"] == pytest.approx(1)
        warned = [words in printed for words in ("WARNING: scores are from", "Rescale the scores")]
        assert warned == [name == "other"] * 2
        assert ("Warning: scores are from" in (tmp_path / name / "report.html").read_text()) == (name == "other")
    least, largest = decisions_in(tmp_path / "other")["report"]["score_range"]
    assert least == largest == pytest.approx(scale * 0.9 + offset)
    assert ("with a score above 1, ECE and Brier are not measured" in printed) == (scale > 1)


def test_a_score_just_above_1_is_not_said_to_be_1():
    truth = make_truth()
    results = make_results(truth)
    scores = np.where(np.arange(len(results)) == 0, np.float32(1) + np.finfo(np.float32).eps, results.scores)
    warning = measure_decisions(truth, replace(results, scores=scores), base_and_novel(truth.categories)).warning
    assert warning is not None
    assert " to 1.000000119, but" in warning


def test_a_calibrated_detector_is_not_asked_to_be_calibrated():
    truth = make_truth()
    results = make_results(truth)
    low = replace(results, scores=0.04 * results.scores)
    groups = base_and_novel(truth.categories)
    words = "all scores are below 0.05, the lowest that counts"
    for own_threshold, advice in ((None, "Rescale the scores, or calibrate"), (0.4, "The detector is calibrated")):
        warning = measure_decisions(truth, low, groups, own_threshold=own_threshold).warning
        assert warning is not None
        assert warning.startswith(words)
        assert advice in warning
    assert measure_decisions(truth, results, groups).warning is None


def test_a_class_that_is_but_the_parent_of_others_is_not_judged(tmp_path):
    """A class that is only the parent of others is not judged, since no detector has it; a results file gets the same
    metrics without it."""
    rng = np.random.default_rng(0)
    boxes = [[*map(float, rng.uniform(0, 40, 2)), 30.0, 30.0] for _ in range(12)]
    content: dict[str, Any] = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "height": 80, "width": 80} for number in range(6)],
        "categories": [{"id": number, "name": f"thing {number}", "supercategory": "things"} for number in (1, 2)],
        "annotations": [
            {"id": row, "image_id": row // 2, "category_id": 1 + row % 2, "bbox": box, "area": 900.0, "iscrowd": 0}
            for row, box in enumerate(boxes)
            if row % 3
        ],
    }
    rows = [
        {"image_id": row // 2, "category_id": 1 + row % 2, "bbox": box, "score": 0.9 - row / 20}
        for row, box in enumerate(boxes)
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    found = []
    for name in ("without", "with"):
        if name == "with":
            content["categories"].append({"id": 0, "name": "things", "supercategory": "none"})
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        evaluate_results_file(tmp_path / f"{name}.json", tmp_path / "results.json", "coco", output_dir=tmp_path / name)
        found.append(json.loads((tmp_path / name / "decisions.json").read_text()))
    assert found[0]["groups"] == found[1]["groups"]
    assert found[0]["groups"][0]["num_classes"] == 2
