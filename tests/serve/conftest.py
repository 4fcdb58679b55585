"""A small untrained detector and a server for it, for the tests of the server."""

from collections.abc import Iterator

import pytest
from small_server import LIMITS, Running, running
from small_trained import small_trained

from ovd.build.trained import TrainedDetector
from ovd.serve.detection_service import DetectionService
from ovd.serve.hosts import known_hosts
from ovd.serve.settings import Settings


@pytest.fixture(scope="session")
def trained(tiny_clip) -> TrainedDetector:
    return small_trained(
        tiny_clip, "anchor", "cat face", detector={"freeze_backbone": True}, bank={"templates": "none"},
        eval={"max_detections": 50},
    )  # fmt: skip


@pytest.fixture(scope="session")
def service(trained) -> DetectionService:
    made = DetectionService(trained)
    made.warm_up()
    return made


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(model="tiny", threshold=0.05, hosts=known_hosts("127.0.0.1"), limits=LIMITS)


@pytest.fixture(scope="module")
def served(service, settings) -> Iterator[Running]:
    with running(service, settings) as found:
        yield found
