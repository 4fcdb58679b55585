"""The subject of an evaluation: the name of its folder, its note, and options that exclude each other."""

from pathlib import Path

import pytest

from ovd.data.formats.options import FormatOptions
from ovd.jobs.evaluation_subject import EvaluationSubject


def test_what_is_said_is_noted_in_order_and_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subject = EvaluationSubject(
        Path("run"), Path("mine/data.yaml"), format="yolo", options=FormatOptions(split="val"),
        experts=(Path("b/expert"), Path("a")), nearest=True, size=96,
    )  # fmt: skip
    assert subject.folder_name == "eval-mine-data-val-b-a-nearest-size-96"
    assert list(subject.recorded_options().items()) == [
        ("run", f"{tmp_path}/run"),
        ("annotations", f"{tmp_path}/mine/data.yaml"),
        ("format", "yolo"),
        ("split", "val"),
        ("expert", f"['{tmp_path}/a', '{tmp_path}/b/expert']"),
        ("nearest", "True"),
        ("size", "96"),
    ]
    alone = EvaluationSubject(Path("run"))
    assert (alone.folder_name, alone.recorded_options()) == ("eval", {"run": f"{tmp_path}/run"})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"images": Path("images")}, "need --annotations FILE"),
        ({"options": FormatOptions(xyxy=True)}, "need --annotations FILE"),
        ({"annotations": Path("a.json"), "format": "coco"}, "--annotations needs --images"),
        ({"annotations": Path("a.json"), "images": Path("images")}, "--annotations needs --images"),
        ({"onnx": Path("model.onnx"), "experts": (Path("a"),)}, "--expert cannot be used with --onnx"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        EvaluationSubject(Path("run"), **parts)
