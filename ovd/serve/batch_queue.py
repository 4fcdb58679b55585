"""A queue whose requests are answered in batches, by one thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ovd.serve.detection_service import DetectionRequest
from ovd.structures import Detections

DetectBatch = Callable[[Sequence[DetectionRequest]], list[Detections | Exception]]


@dataclass(frozen=True)
class BatchedResult:
    """Detections in one picture."""

    detections: Detections
    batch_size: int
    """Number of pictures that were answered together."""


@dataclass(frozen=True, eq=False)
class _PendingRequest:
    request: DetectionRequest
    result: asyncio.Future[BatchedResult]
    arrival: float
    """Time of arrival, by the clock of the event loop."""


class BatchQueue:
    """Dynamic batching: requests wait for one thread, which always takes the oldest and others of its padded shape."""

    def __init__(self, detect: DetectBatch, *, limit: int, gather_s: float):
        """
        Args:
            detect: function from requests of one padded shape to the detections, or the exception, of each.
            limit: largest number of requests in a batch.
            gather_s: seconds that a request waits for others to join its batch while the thread is free.
        """
        self._detect = detect
        self._limit = limit
        self._gather_s = gather_s
        self._pending: list[_PendingRequest] = []
        self._arrived = asyncio.Event()

    async def submit(self, request: DetectionRequest) -> BatchedResult:
        """Queue a request and wait for its result. A request whose caller stops waiting is dropped.

        Raises:
            Exception: the exception that answering this request raised.
        """
        loop = asyncio.get_running_loop()
        pending = _PendingRequest(request, loop.create_future(), loop.time())
        self._pending.append(pending)
        self._arrived.set()
        return await pending.result

    async def run(self) -> None:
        """Answer requests until cancelled; those still in the queue are then cancelled, too."""
        loop = asyncio.get_running_loop()
        try:
            with ThreadPoolExecutor(1, "detector") as thread:
                while True:
                    batch = await self._next_batch()
                    requests = [pending.request for pending in batch]
                    answers = await loop.run_in_executor(thread, self._detect, requests)
                    for pending, answer in zip(batch, answers, strict=True):
                        if pending.result.done():
                            continue
                        if isinstance(answer, Exception):
                            pending.result.set_exception(answer)
                        else:
                            pending.result.set_result(BatchedResult(answer, len(batch)))
        finally:
            for pending in self._pending:
                pending.result.cancel()

    async def _next_batch(self) -> list[_PendingRequest]:
        """Take the oldest request and others of its shape, once they fill a batch or it has waited `gather_s`."""
        loop = asyncio.get_running_loop()
        while True:
            batch = self._batch_of_oldest_shape()
            left = batch[0].arrival + self._gather_s - loop.time() if batch else None
            if batch and left is not None and (len(batch) == self._limit or left <= 0):
                taken = set(map(id, batch))
                self._pending = [pending for pending in self._pending if id(pending) not in taken]
                return batch
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    def _batch_of_oldest_shape(self) -> list[_PendingRequest]:
        self._pending = [pending for pending in self._pending if not pending.result.done()]
        shapes = [pending.request.image.padded_shape for pending in self._pending]
        return [pending for pending, shape in zip(self._pending, shapes, strict=True) if shape == shapes[0]][
            : self._limit
        ]
