"""COCO metrics of both engines against pycocotools, called directly from files."""

import contextlib
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jittered_boxes import jittered_boxes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovd.data.annotations import load_truth
from ovd.data.truth import Truth, TruthImage
from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.results import Results
from ovd.evaluation.results_file import load_results, write_results
from ovd.structures import Detections

ENGINES = ("hotcoco", "official")
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
REAL, REAL_RESULTS = SHARED / "coco_instances_val2014_100.json", SHARED / "coco_val2014_fakebbox100_results.json"
needs_real_annotations = pytest.mark.skipif(
    not (REAL.exists() and REAL_RESULTS.exists()), reason=f"{REAL} or {REAL_RESULTS} is not on this machine"
)


def truth_of(annotations: Path) -> Truth:
    return load_truth(annotations, format="coco")


def official_metrics(annotations: Path, results: Path) -> dict[str, float]:
    """Compute the reference with pycocotools' own reading, evaluation and summary."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


def small_dataset(rng: np.random.Generator) -> dict:
    """Make annotations with unordered category ids with gaps, crowds, boxes without area, and non-square images."""
    annotations: list[dict] = []
    for image_id in (9, 4, 30, 12):
        for _ in range(6):
            width, height = rng.uniform(5, 110, 2) * [rng.random() > 0.1, 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice([3, 90, 17])),
                    "bbox": [*rng.uniform(0, 40, 2).tolist(), float(width), float(height)],
                    "area": float(width * height * rng.uniform(0.4, 1)),
                    "iscrowd": int(rng.random() < 0.25),
                }
            )
    return {
        "images": [{"id": image_id, "width": 200, "height": 120} for image_id in (9, 4, 30, 12, 5)],
        "annotations": annotations,
        "categories": [{"id": category_id, "name": f"class {category_id}"} for category_id in (90, 3, 17, 41)],
    }


def noisy_results(dataset: dict, *, per_box: int, spare: int, rng: np.random.Generator) -> list[dict]:
    """Make results of jittered true boxes with wrong classes, tied scores, boxes without area, and over 100 detections
    of a class in one image."""
    category_ids = [category["id"] for category in dataset["categories"]]
    records = jittered_boxes(dataset, per_box=per_box, spread=0.1, rng=rng)
    for _ in range(spare):
        records.append(
            {
                "image_id": dataset["images"][0]["id"],
                "category_id": category_ids[1],
                "bbox": rng.uniform(0, 60, 4).tolist(),
                "score": round(float(rng.random()), 2),
            }
        )
    rng.shuffle(records)  # type: ignore[arg-type]
    return records


def evaluate(annotations: Path, results: Path, engine) -> dict[str, float]:
    evaluator = COCOEvaluator(truth_of(annotations), (), engine=engine)
    evaluator.add_results(load_results(results), source=str(results))
    return evaluator.compute()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(small_dataset(np.random.default_rng(0))))
    return path


@needs_real_annotations
@pytest.mark.parametrize("engine", ENGINES)
def test_published_sample_results_equal_pycocotools(engine):
    metrics = evaluate(REAL, REAL_RESULTS, engine)
    assert metrics == pytest.approx(official_metrics(REAL, REAL_RESULTS), abs=1e-6)
    assert metrics["AP"] == pytest.approx(0.505, abs=5e-4)  # the value published with that sample


@needs_real_annotations
@pytest.mark.parametrize("engine", ENGINES)
def test_noisy_results_on_real_annotations_equal_pycocotools(engine, tmp_path):
    records = noisy_results(json.loads(REAL.read_text()), per_box=4, spare=300, rng=np.random.default_rng(0))
    (tmp_path / "results.json").write_text(json.dumps(records))
    metrics = evaluate(REAL, tmp_path / "results.json", engine)
    assert metrics == pytest.approx(official_metrics(REAL, tmp_path / "results.json"), abs=1e-6)
    assert 0.05 < metrics["AP"] < 0.95


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(4))
def test_gaps_crowds_and_ties_equal_pycocotools(engine, seed, tmp_path):
    rng = np.random.default_rng(seed)
    dataset = small_dataset(rng)
    assert any(annotation["iscrowd"] for annotation in dataset["annotations"])
    (tmp_path / "truth.json").write_text(json.dumps(dataset))
    (tmp_path / "results.json").write_text(json.dumps(noisy_results(dataset, per_box=4, spare=120, rng=rng)))

    metrics = evaluate(tmp_path / "truth.json", tmp_path / "results.json", engine)

    assert metrics == pytest.approx(official_metrics(tmp_path / "truth.json", tmp_path / "results.json"), abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_annotation_id_zero_can_be_matched(engine, small):
    """Annotation id 0 can be matched: pycocotools takes a match with it for none, so annotations are numbered from 1
    for it."""
    dataset = {
        "images": [{"id": 0}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [5, 5, 50, 20], "area": 1000}],
        "categories": [{"id": 0, "name": "boat"}],
    }
    small.write_text(json.dumps(dataset))
    evaluator = COCOEvaluator(truth_of(small), (0,), engine=engine)
    evaluator.update(0, Detections(torch.tensor([[5.0, 5, 55, 25]]), torch.tensor([0.3]), torch.tensor([0])))
    metrics = evaluator.compute()
    assert [metrics[name] for name in ("AP", "AP50", "AR1", "APs", "APm")] == pytest.approx([1, 1, 1, 1, -1])


@pytest.mark.parametrize("engine", ENGINES)
def test_detections_given_image_by_image_equal_the_written_file(engine, small, tmp_path):
    rng = np.random.default_rng(1)
    evaluator = COCOEvaluator(truth_of(small), (17, 90, 3, 41), engine=engine)
    for image_id in (4, 9, 12, 30):
        corners = torch.from_numpy(rng.uniform(0, 60, (60, 2)).astype(np.float32))
        sizes = torch.from_numpy(rng.uniform(5, 110, (60, 2)).astype(np.float32))
        scores = torch.from_numpy(rng.random(60).astype(np.float32))
        classes = torch.from_numpy(rng.integers(0, 4, 60))
        evaluator.update(image_id, Detections(torch.cat([corners, corners + sizes], dim=1), scores, classes))
    write_results(tmp_path / "results.json", evaluator.results())

    metrics = evaluator.compute()

    assert metrics == evaluate(small, tmp_path / "results.json", engine)
    assert metrics["AP50"] > 0


def test_an_image_of_a_large_data_set_is_added_as_fast_as_one_of_a_small(small):
    """A search of all images for each image took minutes for Objects365's 80,000 validation images."""
    truth = truth_of(small)
    found = Detections(torch.tensor([[5.0, 5, 55, 25]] * 300), torch.rand(300), torch.zeros(300, dtype=torch.int64))
    seconds = []
    for num_images in (100, 200_000):
        images = tuple(TruthImage(100 * number, (), ()) for number in range(num_images))
        evaluator = COCOEvaluator(replace(truth, images=images), (3,))
        evaluator.update(9900, found)
        start = time.process_time()
        for number in range(50):
            evaluator.update(100 * number, found)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 10 * seconds[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_detections_score_zero(engine, small):
    metrics = COCOEvaluator(truth_of(small), (3,), engine=engine).compute()
    assert max(annotation["area"] for annotation in json.loads(small.read_text())["annotations"]) < 96**2
    assert metrics == dict.fromkeys(NAMES, 0) | {"APl": -1, "ARl": -1}  # no true box is large


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("column", ["scores", "boxes_xywh", "image_ids", "category_ids"])
def test_bad_results_are_refused_by_name(engine, column, small):
    columns = {
        "image_ids": np.array([4, 4]),
        "category_ids": np.array([3, 3]),
        "boxes_xywh": np.ones((2, 4)),
        "scores": np.array([0.1, 0.2]),
    }
    columns[column][1] = 1000 if column.endswith("ids") else np.nan
    with pytest.raises(ValueError, match=r"run\.json: record 1 "):
        COCOEvaluator(truth_of(small), (), engine=engine).add_results(Results(**columns), source="run.json")


def test_a_bad_record_among_those_of_classes_that_are_not_evaluated_has_its_number_in_the_file(small):
    truth = truth_of(small)
    one, *_ = truth.categories
    other = next(category.id for category in truth.categories if category.name != one.name)
    evaluator = COCOEvaluator(truth, (), groups={"novel": {one.name}})
    image = int(truth.image_ids[truth.category_ids == one.id][0])
    columns = {
        "image_ids": np.full(3, image),
        "category_ids": np.array([other, other, one.id]),
        "boxes_xywh": np.ones((3, 4)),
        "scores": np.array([0.1, 0.2, np.nan]),
    }
    with pytest.raises(ValueError, match=r"run\.json: record 2 .*: the score is not finite; 1 such record"):
        evaluator.add_results(Results(**columns), source="run.json")
    unknown = columns | {"scores": np.ones(3), "category_ids": np.array([other, one.id, 1000])}
    with pytest.raises(ValueError, match=r"run\.json: record 2 .*: unknown category_id"):
        evaluator.add_results(Results(**unknown), source="run.json")
    evaluator.add_results(Results(**columns | {"scores": np.ones(3)}), source="run.json")
    assert len(evaluator.results()) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_are_silent(engine, small, capfd):
    COCOEvaluator(truth_of(small), (), engine=engine).compute()
    assert tuple(capfd.readouterr()) == ("", "")


def test_protocol_is_said(small):
    evaluation = COCOEvaluator(truth_of(small), ()).evaluate()
    assert [section.protocol for section in evaluation.sections] == ["COCO box AP, 100 per image and class"]
