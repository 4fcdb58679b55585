"""Ids too large for the floats of the engines give the same metrics as small ids."""

import json
from pathlib import Path

import numpy as np
import pytest

from ovd.choices import Engine
from ovd.data.annotations import load_truth
from ovd.evaluation.results import Results
from ovd.evaluation.run import build_box_evaluator

SHIFTS = (0, 2**53, 2**63 - 40, -(2**63))


def metrics(path: Path, shift: int, *, federated: bool, engine: Engine) -> dict[str, float]:
    rng = np.random.default_rng(0)
    # The first image has no box, and a detection there of a class that is absent from it.
    labels = {"neg_category_ids": [shift + 11, shift + 4], "not_exhaustive_category_ids": [shift + 5]}
    boxes = rng.uniform(5, 60, (24, 4))
    content = {
        "images": [{"id": shift + row, **(labels if federated else {})} for row in (30, 7, 8, 9)],
        "categories": [{"id": shift + row, "name": f"c{row}", "frequency": "rcf"[row % 3]} for row in (11, 4, 5)],
        "annotations": [
            {"id": row, "image_id": shift + (7, 8, 9)[row % 3], "category_id": shift + 4 + row % 2, "bbox": list(box),
             "area": box[2] * box[3]}
            for row, box in enumerate(boxes, start=1)
        ],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    truth = load_truth(path, format="lvis" if federated else "coco")
    evaluator = build_box_evaluator(truth, "lvis" if federated else "coco", (), engine=engine)
    rows = np.arange(1, 25)
    image_ids = np.array([shift + (7, 8, 9)[row % 3] for row in rows.tolist()] + [shift + 30], np.int64)
    category_ids = np.array([shift + 4 + row % 2 for row in rows.tolist()] + [shift + 4], np.int64)
    moved = boxes + rng.normal(0, 2, boxes.shape).clip(-4, 4)
    found = Results(image_ids, category_ids, np.concatenate([moved, moved[:1]]), np.append(rng.random(24), 0.9))
    evaluator.add_results(found, source="test")
    return evaluator.compute()


@pytest.mark.parametrize("federated", [False, True])
@pytest.mark.parametrize("engine", ["hotcoco", "official"])
def test_figures_do_not_depend_on_the_ids(tmp_path, federated: bool, engine: Engine, capfd):
    first, *others = (metrics(tmp_path / "a.json", shift, federated=federated, engine=engine) for shift in SHIFTS)
    assert first["AP"] > 0.2
    assert others == [first] * 3
    assert "warning" not in capfd.readouterr().err
