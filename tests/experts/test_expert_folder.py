"""Experts on disk: what is damaged or of another detector is refused by name."""

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
    check_base,
    find_expert,
    read_description,
    read_tensors,
    write_expert,
)

EXPERT = ExpertDescription(
    base_sha256="aa", base="runs/base", learn="path", own_layers=1, rank=0, names=("red ring",),
    synonyms=(("red hoop",),), margin=0.1, config={"output": "x"}, calibration=None, metrics={"new": {"AP": 0.5}},
)  # fmt: skip
CONTENT = {"head.weight": torch.arange(6.0).view(2, 3), "expert.text": torch.eye(2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_expert(tmp_path / "run" / "expert", EXPERT, CONTENT)
    return tmp_path / "run"


def test_what_is_written_is_read_from_the_folder_or_its_run(folder: Path) -> None:
    for path in (folder, folder / "expert"):
        assert find_expert(path) == folder / "expert"
        found = read_description(path)
        assert replace(found, sha256="") == EXPERT
        stored = read_tensors(path, found)
        assert stored.keys() == CONTENT.keys()
        assert all(torch.equal(stored[name], tensor) for name, tensor in CONTENT.items())


def test_a_folder_without_an_expert(tmp_path: Path) -> None:
    with pytest.raises(ExpertError, match=r"holds no expert: neither expert\.json nor expert/expert\.json"):
        read_description(tmp_path)


def test_other_tensors_than_those_described_are_refused(folder: Path) -> None:
    description = read_description(folder)
    file = folder / "expert" / TENSORS
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ExpertError, match=r"its sha256 differs"):
        read_tensors(folder, description)
    file.unlink()
    with pytest.raises(ExpertError, match=r"expert\.safetensors cannot be read"):
        read_tensors(folder, description)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"names": 3}', '{"names": [], "synonyms": [], "more": 1}'])
def test_a_damaged_description_is_refused(folder: Path, content: str) -> None:
    (folder / "expert" / DESCRIPTION).write_text(content)
    with pytest.raises(ExpertError, match=r"expert\.json is not an expert's description"):
        read_description(folder)


def test_an_interrupted_write_leaves_no_expert(folder: Path, monkeypatch) -> None:
    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(json, "dumps", fail)
    with pytest.raises(OSError, match="no space"):
        write_expert(folder / "expert", EXPERT, CONTENT)
    with pytest.raises(ExpertError, match="holds no expert"):
        read_description(folder)


def test_an_expert_of_another_detector_is_refused_with_both_hashes(folder: Path) -> None:
    check_base(EXPERT, folder, "aa", Path("base"))
    with pytest.raises(ExpertError, match=r"trained on runs/base with weights of sha256 aa; those of base have bb"):
        check_base(EXPERT, folder, "bb", Path("base"))
