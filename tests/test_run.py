from pathlib import Path

import pytest

from ovd.config import TrainConfig
from ovd.jobs.train import check_same_run


def config(**train) -> TrainConfig:
    return TrainConfig.model_validate({"output": "runs/a", "train": {"steps": 100, **train}})


def test_a_run_goes_on_with_its_own_settings_and_those_that_teach_nothing():
    stored = config().model_dump(mode="json")
    check_same_run(stored, config())
    check_same_run(stored, config(save_every=7).model_copy(update={"output": Path("elsewhere")}))


def test_every_setting_that_differs_is_named():
    stored = config().model_dump(mode="json")
    message = r"was started with other settings: train\.seed was 0, is 3; train\.steps was 100, is 200"
    with pytest.raises(ValueError, match=message):
        check_same_run(stored, config(steps=200, seed=3))


def test_a_run_of_an_earlier_version_had_the_defaults_of_what_is_new():
    stored = config().model_dump(mode="json")
    del stored["train"]["accumulate"], stored["data"]["mosaic"]
    check_same_run(stored, config())
    with pytest.raises(ValueError, match=r"train\.accumulate was 1, is 2"):
        check_same_run(stored, config(accumulate=2))
