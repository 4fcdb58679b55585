"""LVIS metrics of both engines against the `lvis` package, called directly from files."""

import json
import logging
import sys
import types
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from jittered_boxes import jittered_boxes

from ovd.data.annotations import load_truth
from ovd.data.report import DataError
from ovd.data.truth import Truth
from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.lvis import LVISEvaluator
from ovd.evaluation.results import Results
from ovd.evaluation.results_file import load_results, write_results
from ovd.structures import Detections

ENGINES = ("hotcoco", "official")
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "lvis_val_100.json"
needs_real_annotations = pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not on this machine")
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
RECALLS = ("AR@300", "ARs@300", "ARm@300", "ARl@300")


def truth_of(annotations: Path) -> Truth:
    return load_truth(annotations, format="lvis")


def official_metrics(annotations: Path, results: Path, max_dets: int) -> dict[str, float]:
    """Compute the reference with lvis's own reading, capping, evaluation and summary."""
    import lvis.eval

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lvis.eval, "np", types.SimpleNamespace(**{**vars(np), "float": float}))
        truth = lvis.LVIS(str(annotations))
        evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, str(results), max_dets=max_dets), "bbox")
        evaluation.run()
    return {name: float(value) for name, value in evaluation.get_results().items()}


def noisy_results(annotations: Path, *, per_box: int, spare_per_image: int, seed: int) -> list[dict]:
    """Make results of jittered true boxes with wrong classes, tied scores, boxes without area, and many spare boxes per
    image."""
    rng = np.random.default_rng(seed)
    dataset = json.loads(annotations.read_text())
    category_ids = [category["id"] for category in dataset["categories"]]
    records = jittered_boxes(dataset, per_box=per_box, spread=0.12, rng=rng)
    for image in dataset["images"]:
        likely = [*image["neg_category_ids"], *category_ids[:3]]
        for _ in range(spare_per_image):
            size = rng.uniform(0, 120, 2) * (rng.random() > 0.05)
            records.append(
                {
                    "image_id": image["id"],
                    "category_id": int(rng.choice(likely)),
                    "bbox": [*rng.uniform(0, 300, 2).tolist(), *size.tolist()],
                    "score": round(float(rng.random()), 2),
                }
            )
    rng.shuffle(records)  # type: ignore[arg-type]
    return records


def best_per_class(records: list[dict], limit: int) -> list[dict]:
    """Keep the best `limit` records of each class, as Dave et al. do, list by list."""
    by_class: dict[int, list[dict]] = {}
    for record in records:
        by_class.setdefault(record["category_id"], []).append(record)
    return [
        record
        for members in by_class.values()
        for record in sorted(members, key=lambda record: record["score"], reverse=True)[:limit]
    ]


def small_dataset(rng: np.random.Generator) -> dict:
    """Make annotations of four categories with unordered ids with gaps in non-square images; annotation ids are as in
    LVIS."""
    images = [
        {
            "id": image_id,
            "width": 120,
            "height": 80,
            "neg_category_ids": rng.choice([3, 7, 8, 20], 1).tolist(),
            "not_exhaustive_category_ids": rng.choice([3, 7, 8, 20], 1).tolist(),
        }
        for image_id in (9, 4, 30, 12, 5)
    ]
    annotations: list[dict] = []
    for image in images:
        for _ in range(5):
            width, height = rng.uniform(5, 60, 2) * [rng.random() > 0.1, 1]  # some boxes have no area
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice([3, 7, 8])),
                    "bbox": [*rng.uniform(0, 40, 2).tolist(), float(width), float(height)],
                    "area": float(width * height),
                }
            )
    categories = [{"id": c, "name": f"class {c}", "frequency": f} for c, f in ((20, "c"), (3, "r"), (8, "f"), (7, "c"))]
    return {"images": images, "annotations": annotations, "categories": categories}


@dataclass(frozen=True)
class RealCase:
    results: Path
    max_per_class: int
    expected: dict[str, float]


@pytest.fixture(scope="module")
def real_case(tmp_path_factory) -> RealCase:
    """Metrics of both protocols by the official evaluator; for the fixed one, results are truncated beforehand."""
    folder = tmp_path_factory.mktemp("real")
    records = noisy_results(REAL, per_box=4, spare_per_image=400, seed=0)
    truncated = best_per_class(records, 40)
    for name, content in (("all.json", records), ("truncated.json", truncated)):
        (folder / name).write_text(json.dumps(content))
    assert min(Counter(record["image_id"] for record in records).values()) > 300  # the ordinary cap cuts all,
    assert len(truncated) < len(records)  # fixed AP's cap cuts, too,
    assert max(Counter(record["image_id"] for record in truncated).values()) > 300  # and a cap of 300 would cut more
    ordinary = official_metrics(REAL, folder / "all.json", 300)
    fixed = official_metrics(REAL, folder / "truncated.json", -1)
    assert abs(ordinary["AP"] - fixed["AP"]) > 0.005
    assert 0.05 < ordinary["AP"] < 0.95
    expected = {name: ordinary[name] for name in (*NAMES, *RECALLS)} | {f"{name}_fixed": fixed[name] for name in NAMES}
    return RealCase(folder / "all.json", 40, expected)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(small_dataset(np.random.default_rng(0))))
    return path


def evaluate(annotations: Path, results: Path, engine, **options) -> dict[str, float]:
    evaluator = LVISEvaluator(truth_of(annotations), (), engine=engine, **options)
    evaluator.add_results(load_results(results), source=str(results))
    return evaluator.compute()


@needs_real_annotations
@pytest.mark.parametrize("engine", ["hotcoco", pytest.param("official", marks=pytest.mark.slow)])
def test_real_annotations_equal_the_official_evaluator(engine, real_case):
    metrics = evaluate(REAL, real_case.results, engine, max_per_class=real_case.max_per_class)
    assert metrics == pytest.approx(real_case.expected, abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(4))
def test_small_files_equal_the_official_evaluator(engine, seed, tmp_path):
    annotations, results = tmp_path / "truth.json", tmp_path / "results.json"
    annotations.write_text(json.dumps(small_dataset(np.random.default_rng(seed))))
    records = noisy_results(annotations, per_box=3, spare_per_image=20, seed=seed)
    results.write_text(json.dumps(records))

    ours = evaluate(annotations, results, engine)

    official = official_metrics(annotations, results, 300)
    assert {name: ours[name] for name in (*NAMES, *RECALLS)} == pytest.approx(
        {name: official[name] for name in (*NAMES, *RECALLS)}, abs=1e-6
    )
    # Nothing reaches a cap, so the protocols agree.
    assert {name: ours[f"{name}_fixed"] for name in NAMES} == pytest.approx({n: ours[n] for n in NAMES}, abs=1e-12)


def test_a_missing_package_of_the_engine_is_missed_before_any_detection(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "lvis", None)
    with pytest.raises(ValueError, match=r"the official engine needs a package .* pip install --no-deps lvis"):
        LVISEvaluator(truth_of(small), (), engine="official")


@pytest.mark.parametrize("engine", ENGINES)
def test_detections_given_image_by_image_equal_the_written_file(engine, small, tmp_path):
    rng = np.random.default_rng(1)
    vocabulary = (8, 20, 3, 7)  # in another order than in the file
    evaluator = LVISEvaluator(truth_of(small), vocabulary, engine=engine)
    for image_id in (4, 5, 9, 12, 30):
        corners = torch.from_numpy(rng.uniform(0, 60, (40, 2)).astype(np.float32))
        sizes = torch.from_numpy(rng.uniform(5, 60, (40, 2)).astype(np.float32))
        evaluator.update(
            image_id,
            Detections(
                boxes=torch.cat([corners, corners + sizes], dim=1),
                scores=torch.from_numpy(rng.random(40).astype(np.float32)).sort(descending=True).values,
                classes=torch.from_numpy(rng.integers(0, 4, 40)),
            ),
        )
    write_results(tmp_path / "results.json", evaluator.results())

    metrics = evaluator.compute()

    assert metrics == evaluate(small, tmp_path / "results.json", engine)
    assert metrics["AP50"] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_true_boxes_as_detections_are_perfect(engine, small):
    dataset = json.loads(small.read_text())
    vocabulary = (7, 3, 20, 8)
    evaluator = LVISEvaluator(truth_of(small), vocabulary, engine=engine)
    for wrong_px in (50.0, 0.0):
        evaluator.clear()  # of the detections that lie beside the true boxes
        for image in dataset["images"]:
            own = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
            boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)])
            classes = torch.tensor([vocabulary.index(a["category_id"]) for a in own])
            evaluator.update(image["id"], Detections(boxes + wrong_px, torch.ones(len(own)), classes))

    metrics = evaluator.compute()

    assert [metrics[name] for name in ("AP", "APr", "APc", "APf", "AR@300", "AP_fixed")] == pytest.approx([1.0] * 6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("as_empty_updates", [False, True])
def test_no_detections_score_zero(engine, as_empty_updates, small):
    evaluator = LVISEvaluator(truth_of(small), (3,), engine=engine)
    if as_empty_updates:
        for image in json.loads(small.read_text())["images"]:
            evaluator.update(image["id"], Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()))

    metrics = evaluator.compute()

    assert set(metrics) == {*NAMES, *RECALLS, *(f"{name}_fixed" for name in NAMES)}
    assert {name: value for name, value in metrics.items() if value != 0} == {"APl": -1, "ARl@300": -1, "APl_fixed": -1}
    assert max(annotation["area"] for annotation in json.loads(small.read_text())["annotations"]) < 96**2


@pytest.fixture
def cup_without_jar(tmp_path) -> Path:
    """An image with one box of a cup, a rare class, and verified to be without a jar."""
    path = tmp_path / "one.json"
    image = {"id": 1, "width": 200, "height": 100, "neg_category_ids": [2], "not_exhaustive_category_ids": []}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 1600}
    categories = [{"id": 1, "name": "cup", "frequency": "r"}, {"id": 2, "name": "jar", "frequency": "f"}]
    path.write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
    return path


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("jar_width", [40, 0])
def test_ordinary_caps_an_image_at_300_and_fixed_does_not(engine, jar_width, cup_without_jar, tmp_path):
    """300 better-scored detections of an absent class push the only right detection out of ordinary AP, but not out of
    fixed AP; so do detections without area, which are not evaluated themselves."""
    evaluator = LVISEvaluator(truth_of(cup_without_jar), (1, 2), engine=engine)
    evaluator.update(
        1,
        Detections(
            boxes=torch.tensor([[10.0, 10, 10 + jar_width, 50]] * 300 + [[10, 10, 50, 50]]),
            scores=torch.tensor([0.9] * 300 + [0.5]),
            classes=torch.tensor([1] * 300 + [0]),
        ),
    )

    evaluation = evaluator.evaluate()

    metrics = evaluation.metrics
    assert (metrics["AP"], metrics["APr"], metrics["AR@300"]) == (0, 0, 0)
    assert (metrics["AP_fixed"], metrics["APr_fixed"]) == pytest.approx((1, 1))
    write_results(tmp_path / "results.json", evaluator.results())
    assert official_metrics(cup_without_jar, tmp_path / "results.json", 300)["AP"] == 0
    assert evaluation.notes[:2] == (
        "301 detections in 1 of 1 image",
        "ordinary AP leaves out 1 detection beyond an image's best 300",
    )
    assert ("300 detections without area not evaluated" in evaluation.notes) == (jar_width == 0)
    assert [(row.name, row.num_detections) for row in evaluation.classes] == [("cup", 0), ("jar", 300)]
    assert [section.protocol for section in evaluation.sections] == [
        "LVIS box AP, ordinary, 300 per image, federated",
        "LVIS box AP, fixed, 10,000 per class over the data set, federated",
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_fixed_caps_a_class_where_no_image_has_many_detections(engine, cup_without_jar):
    evaluator = LVISEvaluator(truth_of(cup_without_jar), (1, 2), engine=engine, max_per_class=1)
    boxes = torch.tensor([[100.0, 10, 140, 50], [10, 10, 50, 50]])
    evaluator.update(1, Detections(boxes, torch.tensor([0.9, 0.5]), torch.tensor([0, 0])))
    evaluation = evaluator.evaluate()
    assert (evaluation.metrics["AP50"], evaluation.metrics["AP50_fixed"]) == (pytest.approx(0.5, abs=0.01), 0)
    assert "fixed AP leaves out 1 detection beyond a class's best 1" in evaluation.notes


@pytest.mark.parametrize("engine", ENGINES)
def test_fixed_does_not_cap_a_class_in_an_image_at_300(engine, tmp_path):
    """Fixed AP does not cap a class in an image at 300: 310 true boxes in one image are all found."""
    path = tmp_path / "crowd.json"
    image = {"id": 1, "width": 800, "height": 800, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    corners = [(20.0 * (row % 20), 20.0 * (row // 20)) for row in range(310)]
    boxes = [
        {"id": 1 + row, "image_id": 1, "category_id": 1, "bbox": [*corner, 15, 15], "area": 225}
        for row, corner in enumerate(corners)
    ]
    categories = [{"id": 1, "name": "cup", "frequency": "r"}]
    path.write_text(json.dumps({"images": [image], "annotations": boxes, "categories": categories}))
    evaluator = LVISEvaluator(truth_of(path), (1,), engine=engine)
    xyxy = torch.tensor([[x, y, x + 15, y + 15] for x, y in corners])
    evaluator.update(1, Detections(xyxy, torch.linspace(0.9, 0.1, 310), torch.zeros(310, dtype=torch.int64)))
    metrics = evaluator.evaluate().metrics
    assert metrics["AP_fixed"] == pytest.approx(1)
    assert metrics["AR@300"] == pytest.approx(300 / 310)


def one_bad_record(**change) -> Results:
    record = {"image_ids": 4, "category_ids": 3, "boxes_xywh": [1.0, 2.0, 3.0, 4.0], "scores": 0.5} | change
    good = {"image_ids": 4, "category_ids": 3, "boxes_xywh": [1.0, 2.0, 3.0, 4.0], "scores": 0.5}
    return Results(**{name: np.array([good[name], record[name]]) for name in good})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.nan}, "score is not finite"),
        ({"scores": np.inf}, "score is not finite"),
        ({"boxes_xywh": [np.nan, 2.0, 3.0, 4.0]}, "box is not finite"),
        ({"boxes_xywh": [1.0, 2.0, -3.0, 4.0]}, "negative side"),
        ({"image_ids": 77}, "unknown image_id"),
        ({"category_ids": 77}, "unknown category_id"),
    ],
)
def test_bad_results_are_refused_by_name(engine, change, message, small):
    evaluator = LVISEvaluator(truth_of(small), (), engine=engine)
    with pytest.raises(ValueError, match=rf"run\.json: record 1 \(image_id .*{message}; 1 such record"):
        evaluator.add_results(one_bad_record(**change), source="run.json")
    assert len(evaluator.results()) == 0


@pytest.mark.parametrize(
    ("image_id", "score", "row", "message"),
    [
        (4, float("nan"), 0, "image 4: record 1 .*not finite"),
        (4, float("-inf"), 0, "image 4: record 1 .*not finite"),
        (4, 0.5, 2, "image 4: record 1: class 2 is outside the vocabulary's 2 rows"),
        (4, 0.5, -1, "image 4: record 1: class -1"),
        (6, 0.5, 0, "image 6: the image was added twice, or"),
        (9, 0.5, 0, "image 9: the image was added twice, or"),
    ],
)
def test_bad_detections_are_refused_by_name(image_id, score, row, message, small):
    evaluator = LVISEvaluator(truth_of(small), (3, 8))
    evaluator.update(9, Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()))
    detections = Detections(torch.tensor([[0.0, 0, 5, 9]] * 2), torch.tensor([0.5, score]), torch.tensor([0, row]))
    with pytest.raises(ValueError, match=message):
        evaluator.update(image_id, detections)


def break_dataset(dataset: dict, fault: str) -> None:
    image, annotation, category = dataset["images"][1], dataset["annotations"][2], dataset["categories"][0]
    match fault:
        case "no negatives":
            del image["neg_category_ids"]
        case "no exhaustiveness":
            del image["not_exhaustive_category_ids"]
        case "ignore":
            annotation["ignore"] = 1
        case "frequency":
            category["frequency"] = "x"
        case "box":
            annotation["bbox"][0] = float("nan")
        case "area":
            del annotation["area"]
        case "image twice":
            image["id"] = dataset["images"][0]["id"]
        case "unknown category":
            annotation["category_id"] = 99
        case "no images":
            del dataset["images"]


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("no negatives", "F7", "image 4 has no neg_category_ids"),
        ("no exhaustiveness", "F7", "image 4 has no not_exhaustive_category_ids"),
        ("ignore", "F7", "annotation 3: LVIS has no 'ignore'"),
        ("frequency", "F1", "category 20: frequency is 'x'"),
        ("box", "F6", "annotation 3: bbox"),
        ("area", "F6", "annotation 3: area is None"),
        ("image twice", "F2", "images records 0 and 1 have the same id, 9"),
        ("unknown category", "F3", "annotation 3 of category 99"),
        ("no images", "F1", "the list 'images' is missing"),
    ],
)
def test_faulty_annotations_stop_before_any_engine(fault, code, message, small):
    dataset = json.loads(small.read_text())
    break_dataset(dataset, fault)
    small.write_text(json.dumps(dataset))
    with pytest.raises(DataError, match=rf"small\.json.*{message}") as caught:
        truth_of(small)
    assert caught.value.code == code


def test_truncated_annotations_are_named(small):
    small.write_text(small.read_text()[:-30])
    with pytest.raises(DataError, match=r"small\.json: invalid JSON at byte"):
        truth_of(small)


def test_a_truth_without_federated_labels_is_refused(small):
    with pytest.raises(ValueError, match="not read as LVIS"):
        LVISEvaluator(load_truth(small, format="coco"), ())
    with pytest.raises(ValueError, match="read as LVIS"):
        COCOEvaluator(truth_of(small), ())


def test_unknown_vocabulary_is_refused(small):
    with pytest.raises(ValueError, match=r"has no categories \[4\]"):
        LVISEvaluator(truth_of(small), (3, 4))


@pytest.mark.parametrize("engine", ENGINES)
def test_missing_frequencies_are_said(engine, small):
    dataset = json.loads(small.read_text())
    for category in dataset["categories"]:
        del category["frequency"]
    small.write_text(json.dumps(dataset))

    evaluation = LVISEvaluator(truth_of(small), (), engine=engine).evaluate()

    assert "4 of 4 categories without a frequency: in none of r, c, f" in evaluation.notes
    assert "no true box of a rare class, so APr is -1" in evaluation.notes
    assert (evaluation.metrics["APr"], evaluation.metrics["AP"]) == (-1, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_are_silent(engine, small, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        LVISEvaluator(truth_of(small), (), engine=engine).compute()
    assert tuple(capfd.readouterr()) == ("", "")
    assert caplog.text == ""


def test_the_official_engine_leaves_numpy_and_logging_alone(small, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lvis"]:
        monkeypatch.delitem(sys.modules, name)  # its first import configures the root logger
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    LVISEvaluator(truth_of(small), (), engine="official").compute()
    assert "lvis.eval" in sys.modules
    assert logging.getLogger().handlers == []
    assert not hasattr(np, "float")
