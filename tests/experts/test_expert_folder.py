"""Experts on disk: damaged ones and those of another detector are refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovd.experts.folder import (
    DESCRIPTION,
    TENSORS,
    ExpertDescription,
    ExpertError,
    find_expert,
    read_expert,
    write_expert,
)

EXPERT = ExpertDescription(
    base_sha256="aa", base="runs/base", learn="path", own_layers=1, rank=0, names=("red ring",),
    synonyms=(("red hoop",),), margin=0.1, config={"output": "x"}, calibration=None, metrics={"new": {"AP": 0.5}},
)  # fmt: skip
CONTENT = {
    "head.weight": torch.arange(6.0).view(2, 3),
    "expert.text": torch.eye(2),
    "expert.base_text": torch.eye(3)[:, :2],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_expert(tmp_path / "run" / "expert", EXPERT, CONTENT)
    return tmp_path / "run"


def test_what_is_written_is_read_from_the_folder_or_its_run(folder: Path) -> None:
    for path in (folder, folder / "expert"):
        assert find_expert(path) == folder / "expert"
        expert = read_expert(path)
        assert (expert.path, expert.folder) == (path, folder / "expert")
        assert replace(expert.description, sha256="") == EXPERT
        assert expert.tensors.keys() == CONTENT.keys()
        assert all(torch.equal(expert.tensors[name], tensor) for name, tensor in CONTENT.items())


def test_names_are_those_of_the_description_with_their_text_rows(folder: Path) -> None:
    names = read_expert(folder).names
    assert (names.names, names.margin, names.learned_text) == (("red ring",), 0.1, None)
    assert torch.equal(names.text, CONTENT["expert.text"])
    assert torch.equal(names.base_text, CONTENT["expert.base_text"])
    write_expert(folder / "expert", EXPERT, CONTENT | {"expert.answers": torch.ones(2, 2)})
    learned_text = read_expert(folder).names.learned_text
    assert learned_text is not None
    assert torch.equal(learned_text, torch.ones(2, 2))


def test_a_folder_without_an_expert(tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match=r"has no expert: it contains neither expert\.json nor expert/expert\.json"):
        read_expert(tmp_path)


def test_other_tensors_than_those_described_are_refused(folder: Path) -> None:
    file = folder / "expert" / TENSORS
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ExpertError, match=r"its sha256 differs"):
        _ = read_expert(folder).tensors
    file.unlink()
    with pytest.raises(ExpertError, match=r"expert\.safetensors cannot be read"):
        _ = read_expert(folder).names


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("names", "red ring"), ("names", [3]), ("synonyms", ["red hoop"]), ("margin", "0.1"), ("own_layers", 1.5),
        ("rank", None), ("learn", "all"), ("config", []), ("calibration", 0.5), ("metrics", {"new": {"AP": "0.5"}}),
        ("sha256", 1), ("base", None), ("more", 1),
    ],
)  # fmt: skip
def test_a_field_of_a_wrong_type_is_named(folder: Path, field: str, value: object) -> None:
    file = folder / "expert" / DESCRIPTION
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(
        ExpertError, match=rf"expert\.json is not an expert's description: {field}[.:].*; correct it, or"
    ):
        read_expert(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"names": 3}', '{"names": [], "synonyms": [], "more": 1}'])
def test_a_damaged_description_is_refused(folder: Path, content: str) -> None:
    (folder / "expert" / DESCRIPTION).write_text(content)
    with pytest.raises(ExpertError, match=r"expert\.json is not an expert's description"):
        read_expert(folder)


def test_an_interrupted_write_leaves_no_expert(folder: Path, monkeypatch) -> None:
    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(json, "dumps", fail)
    with pytest.raises(OSError, match="no space"):
        write_expert(folder / "expert", EXPERT, CONTENT)
    with pytest.raises(ExpertError, match="has no expert"):
        read_expert(folder)


def test_an_expert_of_another_detector_is_refused_with_both_hashes(folder: Path) -> None:
    expert = read_expert(folder)
    expert.check_base("aa", Path("base"))
    with pytest.raises(ExpertError, match=r"trained on runs/base with weights of sha256 aa; those of base have bb"):
        expert.check_base("bb", Path("base"))
