"""A small untrained detector behind a real socket, which the tests of the server ask."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from ovd.build.detector import TrainedDetector, build_detector
from ovd.config import TrainConfig, parse_config
from ovd.serve.answerer import Answerer
from ovd.serve.app import Settings, build_app
from ovd.serve.hosts import known_hosts
from ovd.serve.limits import Limits
from ovd.serve.server import address, make_server, open_socket

LIMITS = Limits(megabytes=1.0, megapixels=4.0, head_seconds=0.5, body_seconds=0.5, names=200)


@pytest.fixture(scope="session")
def trained(tiny_clip) -> TrainedDetector:
    values = {
        "output": "none",
        "detector": {"channels": 32, "num_convs": 1, "freeze_backbone": True},
        "data": {"size": 64},
        "train": {"steps": 1, "precision": "float32"},
        "eval": {"max_detections": 50},
    }
    config = parse_config(values, TrainConfig, "test")
    torch.manual_seed(0)
    return TrainedDetector(build_detector(config, tiny_clip).eval(), config, tiny_clip, ("anchor", "cat face"))


@pytest.fixture(scope="session")
def answerer(trained) -> Answerer:
    made = Answerer(trained)
    made.warm_up()
    return made


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(model="tiny", threshold=0.05, hosts=known_hosts("127.0.0.1"), limits=LIMITS)


class Running:
    """A server in a thread of this process."""

    def __init__(self, url: str, lines: list[str]):
        self.url = url
        self.lines = lines
        self.client = httpx.Client(base_url=url, timeout=20)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def detect(self, content: bytes | None = None, **fields: object) -> httpx.Response:
        data = {"names": "anchor, cat face", **fields}
        return self.client.post("/api/detect", files={"image": ("photo.png", content or png())}, data={**data})


@contextmanager
def running(answerer: Answerer, settings: Settings, **changes: object) -> Iterator[Running]:
    """A server with these settings, until the block ends."""
    settings = replace(settings, limits=replace(settings.limits, **changes))  # type: ignore[arg-type]
    lines: list[str] = []
    listening = open_socket("127.0.0.1", 0)
    url = address(listening)
    server = make_server(build_app(answerer, settings, tell=lines.append), settings.limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    found = Running(url, lines)
    try:
        yield found
    finally:
        found.client.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(answerer, settings) -> Iterator[Running]:
    with running(answerer, settings) as found:
        yield found


def png(height: int = 48, width: int = 64, *, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
