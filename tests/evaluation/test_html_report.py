"""report.html: its numbers against plain loops, names that contain markup, and the page in a browser."""

import json
import os
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import opened
from page_data import data_of
from PIL import Image
from test_decisions import make_results, make_truth

from ovd.data import box_arrays
from ovd.data.annotations import load_annotations
from ovd.data.category import Category
from ovd.data.formats.supported import FORMATS
from ovd.data.formats.table import AnnotationTable, ReadRequest
from ovd.data.report import DataReport
from ovd.data.truth import Truth, TruthImage
from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.confusions import Confusion, most_confused, names_at_true_boxes
from ovd.evaluation.decisions import DecisionEvaluator
from ovd.evaluation.html_report import report_data, write_html_report
from ovd.evaluation.lvis import LVISEvaluator
from ovd.evaluation.report_pictures import _ImageCounts, choose_images
from ovd.evaluation.results import Results
from ovd.evaluation.results_file import write_results
from ovd.evaluation.run import evaluate_results_file, measure_results

MARKUP = "<script>document.title='ran'</script>"


def iou(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[:2] + one[2:], other[:2] + other[2:]) - np.maximum(one[:2], other[:2])
    inside = sides.clip(min=0).prod()
    return float(inside / (one[2:].prod() + other[2:].prod() - inside))


@pytest.mark.parametrize("federated", [False, True])
def test_verdicts_equal_a_loop_over_images_and_classes(federated):
    truth = make_truth(3, federated=federated)
    results = make_results(truth)
    thresholds = (0.3, 0.45)
    found = DecisionEvaluator(truth, results, base=np.ones(5, bool)).verdicts(thresholds)
    expected, true_rows, found_rows = [], [], set()
    for half_row, image in enumerate(truth.images):
        limit = thresholds[half_row % 2]
        for category in truth.categories:
            here = (truth.image_ids == image.id) & (truth.category_ids == category.id)
            rows = np.flatnonzero(here & ~truth.crowd).tolist()
            is_known = bool(rows) or not here.any()  # a class with only a crowd there is not judged
            is_complete = not (here & truth.crowd).any()
            if federated:
                is_known = bool(rows) or category.id in image.negative_category_ids
                is_complete = category.id not in image.not_exhaustive_category_ids
            counts = is_known and is_complete
            true_rows += rows if counts else []
            mine = (results.image_ids == image.id) & (results.category_ids == category.id) & (results.scores > limit)
            taken: set[int] = set()
            for row in sorted(np.flatnonzero(mine).tolist(), key=lambda row: -results.scores[row]):
                free = [(iou(results.boxes_xywh[row], truth.boxes_xywh[true]), -true) for true in rows]
                best = max(((value, true) for value, true in free if -true not in taken), default=(0.0, 0))
                is_right = best[0] >= 0.5
                taken |= {-best[1]} if is_right else set()
                expected.append((row, is_right, counts, is_known and not rows))
            found_rows |= taken if counts else set()
    expected.sort()
    kept = np.flatnonzero(np.isin(results.scores, found.reported.scores)).tolist()
    columns = (kept, found.is_right.tolist(), found.is_counted.tolist(), found.is_absent.tolist())
    assert list(zip(*columns, strict=True)) == expected
    assert found.true_rows.tolist() == sorted(true_rows)
    assert set(found.true_rows[found.is_found].tolist()) == found_rows
    assert 0 < len(found_rows) < len(true_rows)


def test_a_missed_box_has_the_name_of_the_best_wrong_detection_over_it():
    truth = make_truth(5)
    results = make_results(truth)
    verdicts = DecisionEvaluator(truth, results, base=np.ones(5, bool)).verdicts((0.2, 0.2))
    wrong = verdicts.reported.take(~verdicts.is_right)
    named = []
    for row, is_found in zip(verdicts.true_rows.tolist(), verdicts.is_found.tolist(), strict=True):
        own = (truth.category_ids[row] - 1) // 2
        over = [
            (score, (category - 1) // 2)
            for image, category, box, score in zip(
                wrong.image_ids, wrong.category_ids, wrong.boxes_xywh, wrong.scores, strict=True
            )
            if image == truth.image_ids[row] and iou(box, truth.boxes_xywh[row]) >= 0.5
        ]
        named.append((own, own if is_found else max(over)[1] if over else -1))
    assert names_at_true_boxes(verdicts, truth).tolist() == [list(pair) for pair in named]
    counts = Counter(pair for pair in named if pair[0] != pair[1] and pair[1] >= 0)
    of = Counter(own for own, _ in named)
    pairs = most_confused(names_at_true_boxes(verdicts, truth), truth.categories)
    assert {(item.name, item.named): (item.count, item.of) for item in pairs} == {
        (f"class {own}", f"class {name}"): (count, of[own]) for (own, name), count in counts.items()
    }
    assert [item.count for item in pairs] == sorted((item.count for item in pairs), reverse=True)
    assert len(pairs) > 1
    assert most_confused(np.zeros((0, 2), np.int64), truth.categories) == ()


@pytest.mark.parametrize("at_a_time", [1, 2, 100])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_of_several_wrong_detections_the_best_names_the_box(at_a_time, order, monkeypatch):
    monkeypatch.setattr(box_arrays, "_MAX_PAIRS_PER_CHUNK", at_a_time)
    truth = make_truth()
    truth = replace(
        truth, image_ids=np.array([3]), category_ids=np.array([1]), boxes_xywh=np.array([[10.0, 10, 20, 20]]),
        areas_px=np.array([400.0]), crowd=np.array([False]),
    )  # fmt: skip
    rows = np.array(order)
    boxes = np.array([[10.0, 10, 20, 20], [11, 10, 20, 20], [10, 11, 20, 20], [60, 60, 20, 20]])
    results = Results(np.full(4, 3), np.array([3, 5, 7, 9])[rows], boxes[rows], np.array([0.5, 0.8, 0.6, 0.9])[rows])
    verdicts = DecisionEvaluator(truth, results, base=np.ones(5, bool)).verdicts((0.1, 0.1))
    assert names_at_true_boxes(verdicts, truth).tolist() == [[0, 2]]
    assert most_confused(names_at_true_boxes(verdicts, truth), truth.categories) == (
        Confusion("class 0", "class 2", 1, 1),
    )


@pytest.mark.parametrize("federated", [False, True])
def test_a_class_has_the_curve_of_an_evaluation_of_it_alone(federated):
    truth = make_truth(federated=federated)
    evaluator = (LVISEvaluator if federated else COCOEvaluator)(truth, ())
    evaluator.add_results(make_results(truth), source="results")
    evaluation = evaluator.evaluate()
    assert evaluation.classes
    for row, precision in zip(evaluation.classes, evaluation.class_precision, strict=True):
        assert precision.mean() == pytest.approx(row.AP50)
        alone = np.array([row.category_id])
        only = truth.restrict(np.array([image.id for image in truth.images]), alone)
        one = (LVISEvaluator if federated else COCOEvaluator)(only, ())
        results = make_results(truth)
        one.add_results(results.take(results.category_ids == row.category_id), source="results")
        np.testing.assert_allclose(one.evaluate().curves[0].precision, precision)


def test_worst_and_best_images_share_none():
    counts = np.array([[0, 0, 3], [0, 2, 2], [4, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]]).T
    every = np.ones(6, bool)
    assert choose_images(_ImageCounts(*counts), every) == {"worst": [1, 0, 4], "best": [2, 3]}
    assert choose_images(_ImageCounts(*counts), np.arange(6) > 1) == {"worst": [4, 3], "best": [2]}
    assert choose_images(_ImageCounts(*counts[:, :1]), every[:1]) == {"worst": [0], "best": []}
    assert choose_images(_ImageCounts(*counts[:, 5:]), every[:1]) == {"worst": [], "best": []}


def test_groups_of_a_benchmark_have_curves_and_classes_their_group():
    truth = make_truth()
    truth = replace(truth, categories=tuple(replace(category, frequency=None) for category in truth.categories))
    names = {"base": {"class 0", "class 2", "class 4"}, "novel": {"class 1", "class 3"}}
    evaluator = COCOEvaluator(truth, (), groups=names)
    results = make_results(truth)
    known = np.isin(results.image_ids, [image.id for image in evaluator.truth.images])
    evaluator.add_results(results.take(known), source="results")
    measures = measure_results(evaluator, exhaustive=None)
    data = report_data(measures, title="", is_trained=[True] * 5)
    curves = {curve["label"]: np.array(curve["precision"]) / 1000 for curve in data["curves"]}
    assert list(curves) == ["IoU 0.50", "IoU 0.75", "base, IoU 0.50", "novel, IoU 0.50"]
    for name in names:
        assert curves[f"{name}, IoU 0.50"].mean() == pytest.approx(
            measures.evaluation.metrics[f"AP50_{name}"], abs=1e-3
        )
    assert [row[1] for row in data["classes"]] == ["base", "novel", "base", "novel", "base"]
    assert data["groups"] == ["base", "novel"]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory) -> Path:
    """Folder with the truth of `make_truth` in COCO's form, its pictures (one is missing), and results."""
    folder = tmp_path_factory.mktemp("set")
    truth = make_truth()
    rng = np.random.default_rng(0)
    for image in truth.images[1:]:
        Image.fromarray(rng.integers(0, 255, (140, 100, 3), dtype=np.uint8)).save(folder / f"{image.id}.png")
    names = [MARKUP, 'a & "b"', "ü", "</script><img src=x onerror=alert(1)>", "<!-- plain"]
    content = truth.as_dataset()
    content["images"] = [
        {"id": image.id, "file_name": f"{image.id}.png", "height": 140, "width": 100} for image in truth.images
    ]
    content["categories"] = [
        {"id": category.id, "name": name, "frequency": category.frequency}
        for category, name in zip(truth.categories, names, strict=True)
    ]
    (folder / "annotations.json").write_text(json.dumps(content))
    write_results(folder / "results.json", make_results(truth))
    return folder


def evaluate(data_set: Path, output: Path, **more: Any) -> Any:
    evaluate_results_file(
        data_set / "annotations.json", data_set / "results.json", "coco", output_dir=output, html=True, **more
    )
    return data_of(output / "report.html")


def test_the_page_has_the_figures_of_the_other_files(data_set, tmp_path):
    data = evaluate(data_set, tmp_path, images=data_set)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    shown = {name: value for protocol in data["protocols"] for name, value in protocol["metrics"]}
    assert shown == pytest.approx(metrics, abs=1e-5)
    decisions = json.loads((tmp_path / "decisions.json").read_text())["groups"]
    groups = [item["group"] for item in decisions]
    assert [item["group"] for item in data["decisions"]["groups"]] == groups
    for row, item in zip(data["decisions"]["groups"], decisions, strict=True):
        assert row["cgF1"] == item["cgF1"]
    alarms = sum(row[8] for row in data["classes"])
    assert alarms / 24 == pytest.approx(decisions[0]["absent_per_image"])
    assert [len(row) for row in data["class_curves"]] == [101] * 5
    assert data["reliability"]["groups"][0]["error"] == decisions[0]["ECE"]  # rounded once, as in the console


def test_the_page_changes_no_figure_of_a_file_with_a_parent_class(data_set, tmp_path):
    """The page's metrics do not depend on a parent class, which training leaves out but another tool's results may
    have."""
    content = json.loads((data_set / "annotations.json").read_text())
    for row in content["categories"]:
        row["supercategory"] = "things"
    content["categories"].append({"id": 9999, "name": "things", "supercategory": "none"})
    (data_set / "annotations.json").write_text(json.dumps(content))
    results = json.loads((data_set / "results.json").read_text())
    results.append({**results[0], "category_id": 9999})
    (data_set / "results.json").write_text(json.dumps(results))
    evaluate(data_set, tmp_path / "page", images=data_set)
    files = (data_set / "annotations.json", data_set / "results.json")
    evaluate_results_file(*files, "coco", output_dir=tmp_path / "plain")
    for name in ("metrics.json", "per_class.csv", "decisions.json"):
        assert (tmp_path / "page" / name).read_text() == (tmp_path / "plain" / name).read_text()


@pytest.mark.parametrize("with_images", [False, True])
def test_the_annotations_are_read_once(with_images, data_set, tmp_path, monkeypatch):
    requests = []

    def read(request: ReadRequest, report: DataReport) -> AnnotationTable:
        requests.append(request)
        return coco.read(request, report)

    coco = FORMATS["coco"]
    monkeypatch.setitem(FORMATS, "coco", replace(coco, read=read))
    data = evaluate(data_set, tmp_path, images=data_set if with_images else None)
    assert bool(data["images"]) == with_images
    assert len(requests) == 1


def test_a_results_file_whose_name_is_no_text_has_a_page(data_set, tmp_path):
    results = tmp_path / os.fsdecode(b"r\xe9sultats.json")
    results.write_bytes((data_set / "results.json").read_bytes())
    evaluate_results_file(data_set / "annotations.json", results, "coco", output_dir=tmp_path / "out", html=True)
    assert "<title>r?sultats.json: evaluation</title>" in (tmp_path / "out" / "report.html").read_text()
    assert data_of(tmp_path / "out" / "report.html")["title"] == results.name


def test_pictures_are_chosen_and_a_missing_one_is_said(data_set, tmp_path):
    images = evaluate(data_set, tmp_path, images=data_set)["images"]
    both = images["worst"] + images["best"]
    assert len({image["id"] for image in both}) == len(both) > 10
    assert [image["f1"] for image in images["worst"]] == sorted(image["f1"] for image in images["worst"])
    for image in both:
        kinds = Counter(box[5] for box in image["boxes"])
        assert (kinds[0], kinds[1], kinds[2]) == (image["right"], image["wrong"], image["missed"])
        assert kinds[4] == image["right"]
        assert (image["picture"] is None) == bool(image["fault"]) == (image["file"] == "3.png")
    assert any(image["fault"] for image in both)


def test_without_images_there_are_no_pictures_and_without_a_folder_no_page(data_set, tmp_path):
    assert evaluate(data_set, tmp_path)["images"] == {}
    with pytest.raises(ValueError, match="--output FOLDER"):
        evaluate_results_file(data_set / "annotations.json", data_set / "results.json", "coco", html=True)
    with pytest.raises(ValueError, match="misspelled is not a folder"):
        evaluate(data_set, tmp_path, images=data_set / "misspelled")


def test_the_page_holds_all_it_needs_and_names_stay_text(data_set, tmp_path):
    evaluate(data_set, tmp_path, images=data_set)
    text = (tmp_path / "report.html").read_text()
    assert MARKUP not in text
    assert "<img" not in text
    assert text.count("<script") == text.count("</script") == 2
    assert re.findall(r'(?:src|href)="(?!#)', text) == []
    assert [link for link in re.findall(r"https?://[^\"' ]+", text) if link != "http://www.w3.org/2000/svg"] == []


def test_the_page_in_a_browser(data_set, tmp_path):
    data = evaluate(data_set, tmp_path, images=data_set)
    with opened(tmp_path / "report.html") as page:

        def texts(selector: str) -> list[str]:
            return page.execute_script(
                "return [...document.querySelectorAll(arguments[0])].map((item) => item.textContent)", selector
            )

        def click(selector: str) -> None:
            page.execute_script("document.querySelector(arguments[0]).click()", selector)

        assert page.title == "results.json: evaluation"
        names = texts("#class-table td:first-child")
        assert MARKUP in names
        boxes = "#class-table td:nth-child(5)"
        click("#class-table th:nth-child(5) button")
        falling = [int(text) for text in texts(boxes)]
        click("#class-table th:nth-child(5) button")
        assert [int(text) for text in texts(boxes)] == falling[::-1] == sorted(falling)
        assert page.execute_script(
            "return document.querySelector('#class-table th:nth-child(5)').getAttribute('aria-sort')"
        ) == "ascending"  # fmt: skip

        num_curves = len(texts("#curves path"))
        click("#class-table td:first-child button")
        (shown,) = texts("#class-table td button[aria-pressed='true']")
        assert len(texts("#curves path")) == num_curves + 1
        assert texts("#curves .legend li")[-1] == shown
        page.execute_script(
            "const box = document.getElementById('filter'); box.value = 'ü'; box.dispatchEvent(new Event('input'))"
        )
        assert texts("#class-table td:first-child") == ["ü"]
        assert len(texts("#pictures figure")) == len(data["images"]["worst"])
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    with opened(tmp_path / "report.html", width=500) as page:
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_a_page_of_lvis_size_is_under_20_mb(tmp_path):
    """A page for 5,000 images of 640 x 480, 1,203 classes and 300 detections per image is under 20 MB, even with
    thumbnails of noise, which JPEG compresses badly."""
    rng = np.random.default_rng(0)
    num_images, num_classes, num_boxes, per_image = 5_000, 1_203, 50_000, 300
    categories = tuple(Category(row + 1, f"class number {row}", (), "rcf"[row % 3], 9) for row in range(num_classes))  # type: ignore[arg-type]
    noise = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    picture = tmp_path / "noise.jpg"
    Image.fromarray(noise).save(picture, quality=95)

    def boxes(num: int) -> np.ndarray:
        sides = rng.uniform(10, 200, (num, 2))
        return np.concatenate([rng.uniform(0, 1, (num, 2)) * ([640, 480] - sides), sides], axis=1)

    true = boxes(num_boxes)
    truth = Truth(
        tmp_path / "lvis.json", True,
        tuple(TruthImage(row + 1, tuple(rng.integers(1, num_classes, 20).tolist()), ()) for row in range(num_images)),
        categories, rng.integers(1, num_images + 1, num_boxes), rng.integers(1, num_classes + 1, num_boxes),
        true, true[:, 2:].prod(axis=1), np.zeros(num_boxes, bool), 0,
    )  # fmt: skip
    copied = rng.integers(0, num_boxes, 120_000)
    num = num_images * per_image - len(copied)
    results = Results(
        np.concatenate([truth.image_ids[copied], rng.integers(1, num_images + 1, num)]),
        np.concatenate([truth.category_ids[copied], rng.integers(1, num_classes + 1, num)]),
        np.concatenate([true[copied] + rng.normal(0, 2, (len(copied), 4)), boxes(num)]).clip(min=1),
        np.concatenate([rng.beta(4, 2, len(copied)), rng.beta(1, 9, num)]),
    )
    content = {"images": [{"id": 1, "file_name": "noise.jpg", "height": 480, "width": 640}], "annotations": [],
               "categories": [{"id": 1, "name": "a"}]}  # fmt: skip
    (tmp_path / "one.json").write_text(json.dumps(content))
    index = load_annotations(tmp_path / "one.json", tmp_path, format="coco", report=DataReport())
    none: dict[str, Any] = {
        name: replace(ragged, offsets=np.zeros(num_images + 1, np.int64)) for name, ragged in index._labels().items()
    }
    index = replace(
        index, image_ids=np.arange(1, num_images + 1), image_files=("noise.jpg",) * num_images,
        image_sizes=np.array([[480, 640]] * num_images), **none,
    )  # fmt: skip
    evaluator = LVISEvaluator(truth, ())
    evaluator.add_results(results, source="results")
    measures = measure_results(evaluator, exhaustive=None)
    start = time.perf_counter()
    data = report_data(
        measures, title="LVIS", index=index,
        naming=[Confusion(f"class number {row}", f"class number {row + 1}", 3, 9) for row in range(200)],
        is_trained=[row % 3 > 0 for row in range(num_classes)],
    )  # fmt: skip
    page = write_html_report(data, tmp_path)
    print(f"\n{page.stat().st_size / 2**20:.1f} MiB, written in {time.perf_counter() - start:.1f} s")
    assert page.stat().st_size < 20e6
    assert len(data_of(page)["images"]["worst"]) == 12
    with opened(page) as browser:
        assert "300" not in browser.title
        rows = browser.execute_script("return document.querySelectorAll('#class-table tbody tr').length")
        assert rows == 300
