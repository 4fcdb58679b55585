"""A small untrained detector, and a server of it, which the tests of the server ask."""

import copy
from collections.abc import Iterator

import pytest
import torch
from small_server import LIMITS, Running, running

from ovd.build.detector import build_detector
from ovd.build.trained import TrainedDetector
from ovd.config import TrainConfig
from ovd.config_files import parse_config
from ovd.serve.answerer import Answerer
from ovd.serve.hosts import known_hosts
from ovd.serve.settings import Settings


@pytest.fixture(scope="session")
def trained(tiny_clip) -> TrainedDetector:
    values = {
        "output": "none",
        "detector": {"channels": 32, "num_convs": 1, "freeze_backbone": True},
        "bank": {"templates": "none"},
        "data": {"size": 64},
        "train": {"steps": 1, "precision": "float32"},
        "eval": {"max_detections": 50},
    }
    config = parse_config(values, TrainConfig, "test")
    torch.manual_seed(0)
    return TrainedDetector(
        build_detector(config, copy.deepcopy(tiny_clip)).eval(), config, tiny_clip, ("anchor", "cat face")
    )


@pytest.fixture(scope="session")
def answerer(trained) -> Answerer:
    made = Answerer(trained)
    made.warm_up()
    return made


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(model="tiny", threshold=0.05, hosts=known_hosts("127.0.0.1"), limits=LIMITS)


@pytest.fixture(scope="module")
def served(answerer, settings) -> Iterator[Running]:
    with running(answerer, settings) as found:
        yield found
