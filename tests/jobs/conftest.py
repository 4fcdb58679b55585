"""Fixtures shared by the tests of jobs."""

from pathlib import Path

import pytest
from small_fine_tuning import fine_tuning_config
from small_run import source_of

from ovd.jobs.train import train_from_config


@pytest.fixture(scope="session")
def start(tmp_path_factory, miniature_world) -> Path:
    """The run folder of a detector trained on the miniature world."""
    folder = tmp_path_factory.mktemp("start")
    train_from_config(fine_tuning_config(folder / "run", source_of(miniature_world)), evaluate=False)
    return folder / "run"
