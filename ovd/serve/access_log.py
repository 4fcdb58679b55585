"""Logging of a server: one line per request on the terminal, and metrics in Prometheus' text format."""

import time
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATH_LENGTH = 60


class Metrics:
    """Prometheus metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "ovd_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "ovd_request_seconds", "Seconds from a request's headers to its reply.", registry=self._registry
        )
        self.batch_size = Histogram(
            "ovd_batch_size",
            "Batch size with which each picture was processed.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        self.boxes = Counter("ovd_boxes", "Boxes in replies.", registry=self._registry)
        self.waiting = Gauge("ovd_waiting", "Detection requests without a reply yet.", registry=self._registry)

    def reply(self) -> Response:
        """Return all metrics in Prometheus' text format."""
        return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})


class AccessLog:
    """An ASGI application around another, which counts requests and writes a line about each.

    The line includes the words that a route appends to the list `scope["note"]`.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str], write_line: Callable[[str], None]):
        """
        Args:
            paths: paths that are counted by name; all others count as "other", so that clients cannot add metrics.
            write_line: function that writes a line.
        """
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._write_line = write_line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, is_logged = time.perf_counter(), "-", False
        scope["note"] = []

        def log_once() -> None:
            nonlocal is_logged
            if not is_logged:
                is_logged = True
                self._log(scope, status, time.perf_counter() - start)

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                log_once()  # before the client has the whole answer, and may look for its line
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            log_once()

    def _log(self, scope: Scope, status: str, seconds: float) -> None:
        path = scope["path"]
        self._metrics.requests.labels(path if path in self._paths else "other", status).inc()
        self._metrics.seconds.observe(seconds)
        words = [status, scope["method"][:10], _printable(path), f"{seconds:.3f} s", *scope["note"]]
        with suppress(OSError, ValueError):  # a closed log or a full disk must not stop the answer
            self._write_line(f"{time.strftime('%H:%M:%S')}  {'  '.join(words)}")


def _printable(path: str) -> str:
    """Return a path as one short printable word, so that clients cannot write lines of their own into the log."""
    shown = path if len(path) <= _PATH_LENGTH else f"{path[:_PATH_LENGTH]}..."
    return "".join(letter if letter.isprintable() and letter != " " else "?" for letter in shown)
