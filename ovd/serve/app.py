"""The routes of a server: the page, detection, and information about the server."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp
from torch import Tensor

from ovd.data.images.image_file import ALLOWED_FORMATS, ImageError
from ovd.format_count import format_count
from ovd.serve.access_log import AccessLog, Metrics
from ovd.serve.batch_queue import BatchedResult, BatchQueue
from ovd.serve.coco_response import coco_document
from ovd.serve.detection_service import DetectionRequest, DetectionService
from ovd.serve.form import DetectForm, read_form
from ovd.serve.guard import Guard
from ovd.serve.limits import Refusal
from ovd.serve.openapi import describe_api, docs_page
from ovd.serve.replies import FAILURE, on_failure, on_http_exception, on_refusal
from ovd.serve.settings import Settings
from ovd.visualize.boxes import choose_shown

Prepared = TypeVar("Prepared")
Done = TypeVar("Done")
_LOG = logging.getLogger("ovd.serve")
_DECODERS = 2
"""Number of pictures decoded at once. Each takes about ten bytes per pixel, and up to 28 if it is transparent."""
DISCONNECT_POLL_S = 0.25
"""Seconds between checks of whether a client is still connected."""
_STATIC = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}


class RouteHandlers:
    """Handlers of the routes, with the state that they share."""

    def __init__(self, service: DetectionService, settings: Settings):
        self._service = service
        self._settings = settings
        self._limits = settings.limits
        self._queue = BatchQueue(service.detect, limit=settings.batch, gather_s=settings.gather_ms / 1000)
        self._decoders = ThreadPoolExecutor(_DECODERS, "decoder")
        self._queue_task: asyncio.Task[None] | None = None
        self._num_waiting = 0
        self._num_reading = 0
        self.metrics = Metrics()

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run the batch queue while the application runs."""
        self._queue_task = asyncio.create_task(self._queue.run())
        try:
            yield
        finally:
            self._queue_task.cancel()
            await asyncio.gather(self._queue_task, return_exceptions=True)
            self._decoders.shutdown()

    async def detect(self, request: Request) -> Response:
        """Answer POST /api/detect."""
        self._check_capacity()  # a busy server refuses before it reads a body
        form = await self._read(request)
        with closing(form), self._waiting_slot():
            loop = asyncio.get_running_loop()
            start = loop.time()
            try:
                async with asyncio.timeout(self._limits.answer_seconds):
                    prepared, result = await _cancel_on_disconnect(request, self._submit(form))
            except TimeoutError:
                raise Refusal(
                    503,
                    f"The server is busy and did not finish within {self._limits.answer_seconds:g} seconds.",
                ) from None
            except Refusal:
                raise
            except Exception as error:
                _LOG.exception("detection failed")
                raise Refusal(500, FAILURE) from error
            return self._reply(request, form, prepared, result, seconds=loop.time() - start)

    async def _read(self, request: Request) -> DetectForm:
        """Read the body of a request; the number read at once is limited, since files take memory and disk."""
        if self._num_reading >= self._limits.bodies:
            raise Refusal(
                503, f"The server is reading {format_count(self._num_reading, 'other request')}; try again in a moment."
            )
        self._num_reading += 1
        try:
            return await read_form(request, self._limits)
        finally:
            self._num_reading -= 1

    async def _submit(self, form: DetectForm) -> tuple[DetectionRequest, BatchedResult]:
        prepared = await asyncio.get_running_loop().run_in_executor(self._decoders, self._prepare, form)
        return prepared, await self._queue.submit(prepared)

    @contextmanager
    def _waiting_slot(self) -> Iterator[None]:
        """Count a request among those that wait or are answered; refuse it if there are too many."""
        self._check_capacity()
        self._num_waiting += 1
        self.metrics.waiting.set(self._num_waiting)
        try:
            yield
        finally:
            self._num_waiting -= 1
            self.metrics.waiting.set(self._num_waiting)

    def _check_capacity(self) -> None:
        if self._num_waiting >= self._limits.waiting:
            raise Refusal(
                503, f"The server is busy with {format_count(self._num_waiting, 'request')}; try again in a moment."
            )

    def _prepare(self, form: DetectForm) -> DetectionRequest:
        """Check the names; decode the picture and the examples, one after another."""
        try:
            self._service.check_names(form.names)
        except ValueError as error:
            raise Refusal(400, f"The names {error}; give only one of them, or use fewer words.") from None
        image = self._decode(form.image, self._service.prepare)
        examples: dict[str, list[Float[Tensor, " D"]]] = {}
        for number, (name, upload) in enumerate(form.examples, start=1):
            row = self._decode(upload, self._service.prepare_example, f" of example {number}, {name!r},")
            examples.setdefault(name, []).append(row)
        return DetectionRequest(image, form.names, {name: torch.stack(rows) for name, rows in examples.items()})

    def _decode(self, upload: UploadFile, prepare: Callable[..., Prepared], of_what: str = "") -> Prepared:
        content = upload.file.read(self._limits.max_bytes + 1)
        if len(content) > self._limits.max_bytes:
            raise Refusal(413, f"The picture file{of_what} is larger than {self._limits.megabytes:g} megabytes.")
        try:
            return prepare(content, max_pixels=self._limits.max_pixels)
        except ImageError as error:
            if error.code == "F10":
                raise Refusal(
                    413,
                    f"The picture{of_what} has more than {self._limits.megapixels:g} megapixels, or takes too long to "
                    "decode; make it smaller.",
                ) from None
            raise Refusal(
                415, f"The file{of_what} is damaged or not a picture; allowed are {', '.join(ALLOWED_FORMATS)}."
            ) from None

    def _reply(
        self, request: Request, form: DetectForm, prepared: DetectionRequest, result: BatchedResult, *, seconds: float
    ) -> Response:
        threshold = self._settings.threshold if form.threshold is None else form.threshold
        shown = choose_shown(result.detections, threshold, limit=form.limit, overlapping=form.overlapping)
        self.metrics.batch_size.observe(result.batch_size)
        self.metrics.boxes.inc(len(shown.scores))
        height, width = prepared.image.shape
        names = format_count(len(prepared.names), "name")
        examples = f", {format_count(len(form.examples), 'example')}" if form.examples else ""
        request.scope["note"] += [
            f"{width} x {height} px, {names}{examples}, {format_count(len(shown.scores), 'box', 'boxes')}",
            f"batch of {result.batch_size}",
        ]
        info = {
            "detector": self._settings.model,
            "threshold": threshold,
            "calibrated": self._service.inference.is_calibrated,
            "seconds": round(seconds, 4),
        }
        return JSONResponse(
            coco_document(
                shown,
                prepared.names,
                shape=prepared.image.shape,
                file_name=form.image.filename or "picture",
                info=info,
            )
        )

    def info(self) -> dict[str, Any]:
        """Return the content of GET /api/info."""
        return {
            "model": self._settings.model,
            "version": version("ovd"),
            "threshold": self._settings.threshold,
            "calibrated": self._service.inference.is_calibrated,
            "size": self._service.inference.size,
            "device": self._service.inference.device.type,
            "trained_names": list(self._service.trained_names),
            "formats": list(ALLOWED_FORMATS),
            "limits": asdict(self._limits),
        }

    async def health(self, request: Request) -> Response:
        """Answer GET /health."""
        answers = self._queue_task is not None and not self._queue_task.done()
        return JSONResponse({"status": "ok" if answers else "stopped"}, 200 if answers else 503)

    async def prometheus(self, request: Request) -> Response:
        """Answer GET /metrics."""
        return self.metrics.reply()


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Done]) -> Done:
    """Return the result of some work, or cancel it once the client has disconnected.

    A picture that is being decoded is still decoded to its end, in its thread.

    Raises:
        Refusal: the client has disconnected, so nobody reads the refusal.
    """
    working = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({working}, timeout=DISCONNECT_POLL_S))[0]:
            if await request.is_disconnected():
                raise Refusal(400, "The client has closed the connection.")
        return working.result()
    finally:
        working.cancel()


def build_app(service: DetectionService, settings: Settings, *, write_line: Callable[[str], None]) -> ASGIApp:
    """Build the ASGI application.

    Args:
        write_line: function that writes a line about each request.
    """
    server = RouteHandlers(service, settings)
    info = server.info()
    api = describe_api(info)
    routes = [
        Route("/api/detect", server.detect, methods=["POST"]),
        _fixed("/api/info", JSONResponse(info)),
        _fixed("/openapi.json", JSONResponse(api)),
        _fixed("/docs", Response(docs_page(api), media_type="text/html")),
        Route("/health", server.health),
        Route("/metrics", server.prometheus),
        *(_fixed(path, Response(_static(name), media_type=kind)) for path, (name, kind) in _STATIC.items()),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={Refusal: on_refusal, HTTPException: on_http_exception, Exception: on_failure},
        lifespan=server.lifespan,
    )
    app.router.redirect_slashes = False  # /docs/ is not redirected to /docs
    guarded = Guard(
        app,
        hosts=settings.hosts,
        any_address=settings.any_address,
        head_bytes=settings.limits.head_bytes,
    )
    return AccessLog(guarded, metrics=server.metrics, paths=paths_of(routes), write_line=write_line)


def paths_of(routes: Sequence[Route]) -> frozenset[str]:
    """Return the paths of routes."""
    return frozenset(route.path for route in routes)


def _fixed(path: str, response: Response) -> Route:
    """Return a route with a constant response, held in memory, so that no request opens a file."""
    return Route(path, partial(_always, response))


async def _always(response: Response, request: Request) -> Response:
    return response


def _static(name: str) -> bytes:
    return (files("ovd.serve") / "static" / name).read_bytes()
