"""What is said of a config's data before a training, and that it is what the training then does."""

import json
import shutil
from pathlib import Path

import pytest
from small_run import small_config, source_of

from ovd.data.report import DataError
from ovd.jobs.preflight import preflight


@pytest.fixture
def world(tmp_path, miniature_world) -> Path:
    """A copy to damage, without what takes time."""
    shutil.copytree(miniature_world, tmp_path / "world")
    return tmp_path / "world"


def images(world: Path, part: str) -> list[Path]:
    return sorted((world / "images" / part).glob("*.jpg"))


def test_sound_data_pass_and_nothing_is_written(tmp_path, miniature_world, capsys):
    assert preflight(small_config(tmp_path / "run", miniature_world))
    out = capsys.readouterr().out
    for line in (
        "training: takes all ",
        "evaluation: takes all ",
        "names are trained on",
        "6 steps on 1 ranks draw 12",
    ):
        assert line in out
    assert not (tmp_path / "run").exists()


def test_damaged_images_of_both_sets_are_all_found(tmp_path, world, capsys):
    damaged = [*images(world, "train")[:2], images(world, "val")[3]]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:200])
    assert not preflight(small_config(tmp_path / "run", world))
    out = capsys.readouterr().out
    assert all(str(path) in out for path in damaged)
    assert "images and leaves out and counts the others" in out
    assert "evaluation: stops, 1 of " in out


def test_many_damaged_images_stop_the_training_it_says(tmp_path, world, capsys):
    for path in images(world, "train")[:5]:
        path.write_bytes(b"")
    config = small_config(tmp_path / "run", world, data={"source": source_of(world, validated=False)})
    assert not preflight(config)
    assert "training: stops, error[F9]: 5 of " in capsys.readouterr().out


def test_what_stops_before_the_first_step_stops_here_too(tmp_path, world):
    images(world, "val")[0].unlink()
    with pytest.raises(DataError, match=r"only .* of its .* images are in"):
        preflight(small_config(tmp_path / "run", world))
    path = world / "annotations" / "lvis_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(DataError, match="has a box to train on"):
        preflight(small_config(tmp_path / "run", world))
