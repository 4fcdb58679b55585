"""Counts of objects that are too small at the training size, against the transform itself."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ovd.data.annotations import load_annotations
from ovd.data.index import AnnotationIndex
from ovd.data.loading.small_objects import SampleSizes, count_small_objects
from ovd.data.loading.transforms import TrainTransform
from ovd.data.report import DataError, DataReport, Finding


def index_of(folder: Path, boxes: Sequence[Sequence[float]], height: int, width: int) -> AnnotationIndex:
    content = {
        "images": [{"id": 1, "file_name": "a/1.jpg", "height": height, "width": width}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes, 1)],
        "categories": [{"id": 1, "name": "gull"}],
    }
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    return load_annotations(path, folder, format="coco", report=DataReport())


def is_kept(index: AnnotationIndex, size: int, scale: float) -> bool:
    """Return whether the transform keeps the only object at this scale; nothing is cropped at scales up to 1."""
    transform = TrainTransform(size=size, scale=(scale, scale), flip=0, color=0)
    pixels = np.zeros((*index.image_sizes[0].tolist(), 3), np.uint8)
    return len(transform(pixels, index.record(0).labels, 0)[1].boxes) == 1


def test_what_is_left_out_is_what_the_transform_drops_at_its_largest_scale(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(40):
        height, width = rng.integers(30, 200, 2).tolist()
        size, scale = int(rng.integers(20, 120)), float(rng.uniform(0.3, 1))
        side = 2 * max(height, width) / (size * scale) * rng.uniform(0.7, 1.4)
        index = index_of(tmp_path, [[1, 1, max(1.0, side), 25]], height, width)
        outcomes.append(is_kept(index, size, scale))
        if outcomes[-1]:
            count_small_objects(index, DataReport(), SampleSizes(size=size, largest_scale=scale))
            continue
        with pytest.raises(DataError, match="all 1 objects are under 2 px") as caught:
            count_small_objects(index, DataReport(), SampleSizes(size=size, largest_scale=scale))
        larger = int(str(caught.value).rsplit("data.size=", 1)[1].split()[0])
        assert size < larger
        assert is_kept(index, larger, scale)
    assert 5 < sum(outcomes) < 35


def test_objects_of_exactly_two_pixels_are_kept_wherever_they_are(tmp_path):
    """20 of 3000 px are 2 px at size 300, and in float32 a little more or less, depending on the place."""
    index = index_of(tmp_path, [[x, 10, 20, 300] for x in np.arange(0, 2900, 9.37).tolist()], 2000, 3000)
    report = DataReport()
    count_small_objects(index, report, SampleSizes(size=300, largest_scale=1))
    assert report.counts() == {}
    transform = TrainTransform(size=300, scale=(1, 1), flip=0, color=0)
    kept = transform(np.zeros((2000, 3000, 3), np.uint8), index.record(0).labels, 0)[1]
    assert len(kept.boxes) == len(index.boxes.values) == 310


def test_where_all_samples_are_mosaics_the_advice_is_the_size_that_is_set(tmp_path):
    index = index_of(tmp_path, [[5, 5, 9, 40], [5, 5, 300, 300]], 400, 640)
    report = DataReport()
    report.count_used(2, unit="box")
    count_small_objects(index, report, SampleSizes(size=200, largest_scale=1, tile=0.5))
    (line,) = report.first_records()[Finding("F4", "left out at this size")]
    assert "under 2 px at data.size=200; data.size=288 keeps it" in line
    again = DataReport()
    count_small_objects(index, again, SampleSizes(size=288, largest_scale=1, tile=0.5))
    assert not again.counts()


def test_small_objects_are_counted_apart_and_do_not_stop_a_run(tmp_path, capsys):
    report = DataReport()
    index = index_of(tmp_path, [[n, 5, 3, 4] for n in range(30)] + [[5, 5, 300, 300]], 400, 640)
    report.count_used(31, unit="box")
    count_small_objects(index, report, SampleSizes(size=64, largest_scale=1.25))
    assert report.counts() == {("F4", "left out at this size"): 30}
    assert report.num_used("box") == 1
    assert report.num_seen("box") == 31
    report.raise_if_too_many(31, unit="box")
    first = report.first_records()[Finding("F4", "left out at this size")]
    assert len(first) == 20
    assert first[0] == "a/1.jpg: 3 x 4 px of 640 x 400 px is under 2 px at data.size=64; data.size=343 keeps it"
    assert capsys.readouterr().err.startswith("warning[F4]: 30 objects are left out at this size; the first: a/1.jpg")
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["left_out_at_size_by_code"] == {"F4": 30}
    assert written["skipped"] == {"sample": 0, "box": 30}


def test_a_set_of_nothing_else_stops_and_says_which_size_keeps_it(tmp_path):
    index = index_of(tmp_path, [[5, 5, 3, 4], [5, 5, 30, 2]], 400, 640)
    with pytest.raises(DataError, match=r"train\.json: all 2 objects are under 2 px at data\.size=64, .*keeps half"):
        count_small_objects(index, DataReport(), SampleSizes(size=64, largest_scale=1))


def test_a_set_without_objects_has_no_small_ones(tmp_path):
    report = DataReport()
    count_small_objects(index_of(tmp_path, [], 40, 64), report, SampleSizes(size=64, largest_scale=1))
    assert report.counts() == {}
