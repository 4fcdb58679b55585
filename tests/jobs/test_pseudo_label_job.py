"""What the pseudo-labelling job asks of a detector of transformers."""

import copy
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovd.build.detector import build_detector
from ovd.build.trained import TrainedDetector
from ovd.choices import QuerySource, Templates
from ovd.config import LabelOptions, TrainConfig, parse_config
from ovd.data.pairs.tar import Pair, write_pair_shards
from ovd.jobs import pseudo_label
from ovd.selftrain.labels import TeacherBoxes
from ovd.text.prompts import TEMPLATES


class FakeTeacher:
    """Finds nothing, and keeps what it was made with and asked for."""

    made: "list[FakeTeacher]"

    def __init__(self, name_or_folder: str, **options):
        self.name = f"fake {name_or_folder} {options['templates']}"
        self.templates = options["templates"]
        self.asked: list[tuple[str, ...]] = []
        self.made.append(self)

    def detect(self, images: list[np.ndarray], queries: list[tuple[str, ...]]) -> list[TeacherBoxes]:
        self.asked += queries
        nothing = TeacherBoxes(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
        return [nothing] * len(images)


@pytest.fixture
def made(monkeypatch) -> list[FakeTeacher]:
    monkeypatch.setattr(FakeTeacher, "made", [], raising=False)
    monkeypatch.setattr(pseudo_label, "HuggingFaceTeacher", FakeTeacher)
    return FakeTeacher.made


@pytest.fixture(scope="module")
def trained(tiny_clip) -> TrainedDetector:
    """A fresh detector whose config has the seven short templates."""
    values = {
        "output": "runs/fresh",
        "bank": {"templates": "short"},
        "detector": {"channels": 32, "num_convs": 1},
        "data": {"size": 64},
        "train": {"steps": 1, "precision": "float32", "device": "cpu"},
    }
    config = parse_config(values, TrainConfig, "test")
    torch.manual_seed(0)
    return TrainedDetector(build_detector(config, copy.deepcopy(tiny_clip)).eval(), config, tiny_clip, ())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    content = BytesIO()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(content, "JPEG")
    write_pair_shards(folder, [Pair("00000", content.getvalue(), "an anchor", {})], pairs_per_shard=1)
    return folder


@pytest.mark.parametrize(
    ("queries", "templates", "asked", "read_in", "stored_in"),
    [
        ("nouns", None, "anchor", None, "short"),
        ("nouns", "none", "anchor", "none", "none"),
        ("nouns", "short", "anchor", "short", "short"),
        ("classes", "full", "umbrella", "full", "full"),
        ("caption", None, "an anchor", None, None),
        ("caption", "short", "an anchor", None, None),
    ],
)
def test_templates_that_are_given_reach_the_teacher(
    queries: QuerySource,
    templates: Templates | None,
    asked: str,
    read_in: Templates | None,
    stored_in: Templates | None,
    tmp_path,
    trained,
    pairs,
    made,
):
    options = LabelOptions(queries=queries, classes=("umbrella",) if queries == "classes" else ())
    pseudo_label.pseudo_label_run(
        trained, pairs=pairs, output=tmp_path, options=options, templates=templates, teacher_hf="owl"
    )
    (teacher,) = made
    assert teacher.asked == [(asked,)]
    assert teacher.templates == (None if read_in is None else TEMPLATES[read_in])
    settings = json.loads((tmp_path / "00000.json").read_text())["settings"]
    assert settings["teacher"] == teacher.name
    assert settings["templates"] == (None if stored_in is None else list(TEMPLATES[stored_in]))
