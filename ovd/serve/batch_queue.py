"""A queue whose requests are answered in batches, by one thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ovd.serve.answerer import DetectionRequest
from ovd.structures import Detections

Answer = Callable[[Sequence[DetectionRequest]], list[Detections | Exception]]


@dataclass(frozen=True)
class BatchedResult:
    """Detections in one picture."""

    found: Detections
    batch_size: int
    """Number of pictures that were answered together."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    request: DetectionRequest
    result: asyncio.Future[BatchedResult]
    since: float
    """Time of arrival, by the clock of the event loop."""


class BatchQueue:
    """Dynamic batching: requests wait for one thread, which always takes the oldest and others of its padded shape."""

    def __init__(self, answer: Answer, *, limit: int, gather_s: float):
        """
        Args:
            answer: function from requests of one padded shape to the detections, or the exception, of each.
            limit: largest number of requests in a batch.
            gather_s: seconds that a request waits for others to join its batch while the thread is free.
        """
        self._answer = answer
        self._limit = limit
        self._gather_s = gather_s
        self._line: list[_Waiting] = []
        self._arrived = asyncio.Event()

    async def ask(self, request: DetectionRequest) -> BatchedResult:
        """Queue a request and wait for its result. A request whose caller stops waiting is dropped.

        Raises:
            Exception: the exception that answering this request raised.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, loop.create_future(), loop.time())
        self._line.append(waiting)
        self._arrived.set()
        return await waiting.result

    async def run(self) -> None:
        """Answer requests until cancelled; those still in the queue are then cancelled, too."""
        loop = asyncio.get_running_loop()
        try:
            with ThreadPoolExecutor(1, "detector") as thread:
                while True:
                    batch = await self._next_batch()
                    requests = [waiting.request for waiting in batch]
                    answers = await loop.run_in_executor(thread, self._answer, requests)
                    for waiting, answer in zip(batch, answers, strict=True):
                        if waiting.result.done():
                            continue
                        if isinstance(answer, Exception):
                            waiting.result.set_exception(answer)
                        else:
                            waiting.result.set_result(BatchedResult(answer, len(batch)))
        finally:
            for waiting in self._line:
                waiting.result.cancel()

    async def _next_batch(self) -> list[_Waiting]:
        """Take the oldest request and others of its shape, once they fill a batch or it has waited `gather_s`."""
        loop = asyncio.get_running_loop()
        while True:
            batch = self._of_the_oldest_shape()
            left = batch[0].since + self._gather_s - loop.time() if batch else None
            if batch and left is not None and (len(batch) == self._limit or left <= 0):
                taken = set(map(id, batch))
                self._line = [waiting for waiting in self._line if id(waiting) not in taken]
                return batch
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    def _of_the_oldest_shape(self) -> list[_Waiting]:
        self._line = [waiting for waiting in self._line if not waiting.result.done()]
        shapes = [waiting.request.image.padded_shape for waiting in self._line]
        return [waiting for waiting, shape in zip(self._line, shapes, strict=True) if shape == shapes[0]][: self._limit]
