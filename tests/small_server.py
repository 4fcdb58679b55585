"""A server of a small detector in a thread of the test process, behind a real socket."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
from encoded_images import encode

from ovd.serve.app import build_app
from ovd.serve.detection_service import DetectionService
from ovd.serve.limits import Limits
from ovd.serve.server import address, make_server, open_socket
from ovd.serve.settings import Settings

LIMITS = Limits(megabytes=1.0, megapixels=4.0, head_seconds=5.0, body_seconds=2.0, names=200)


class Running:
    """A server in a thread of this process."""

    def __init__(self, url: str, lines: list[str]):
        self.url = url
        self.lines = lines
        self.client = httpx2.Client(base_url=url, timeout=20, limits=httpx2.Limits(max_keepalive_connections=0))

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def detect(self, content: bytes | None = None, **fields: object) -> httpx2.Response:
        data = {"names": "anchor, cat face", **fields}
        return self.client.post("/api/detect", files={"image": ("photo.png", content or png())}, data={**data})


@contextmanager
def running(
    answerer: DetectionService,
    settings: Settings,
    *,
    write_line: Callable[[str], None] | None = None,
    batch: int | None = None,
    **changes: Any,
) -> Iterator[Running]:
    """Run a server with these settings until the block ends."""
    settings = replace(settings, limits=replace(settings.limits, **changes), batch=batch or settings.batch)
    lines: list[str] = []
    listening = open_socket("127.0.0.1", 0)
    url = address(listening)
    server = make_server(build_app(answerer, settings, write_line=write_line or lines.append), settings.limits)
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


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until the server's threads make `condition` true; fail if they do not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come within {seconds} seconds"
        time.sleep(0.01)


def png(height: int = 48, width: int = 64, *, seed: int = 0) -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8), "PNG")
