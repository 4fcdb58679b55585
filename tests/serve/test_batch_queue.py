"""Requests of the same image shape are answered together, oldest first."""

import asyncio
import threading
import time

import pytest
import torch

from ovd.serve.batch_queue import BatchQueue
from ovd.serve.detection_service import DetectionRequest, PreparedImage
from ovd.structures import Detections


def request_of(name: str, side: int = 64, width: int | None = None) -> DetectionRequest:
    """Make a request of a square picture, or of one of another width."""
    shape = (side, width or side)
    return DetectionRequest(PreparedImage(torch.zeros(3, *shape, dtype=torch.uint8), shape, shape), (name,))


class Recorder:
    """A stand-in for the answerer that records batches, and answers after a delay or when `free` is set."""

    def __init__(self, seconds: float = 0.02, free: threading.Event | None = None):
        self.batches: list[list[str]] = []
        self.seconds = seconds
        self.free = free

    def __call__(self, requests):
        self.batches.append([request.names[0] for request in requests])
        time.sleep(self.seconds)
        assert self.free is None or self.free.wait(20)
        return [RuntimeError("bad") if request.names[0] == "bad" else Detections.empty() for request in requests]


def run(queue: BatchQueue, *asked: DetectionRequest) -> list:
    async def main():
        running = asyncio.create_task(queue.run())
        try:
            async with asyncio.timeout(20):  # also if no answer comes
                return await asyncio.gather(*map(queue.submit, asked), return_exceptions=True)
        finally:
            running.cancel()

    return asyncio.run(main())


def test_the_oldest_shape_goes_first_and_batches_are_full():
    recorder = Recorder()
    asked = [
        request_of("a"),
        request_of("b", 32),
        request_of("c"),
        request_of("d"),
        request_of("e", 32),
        request_of("f"),
    ]
    answers = run(BatchQueue(recorder, limit=3, gather_s=0.0), *asked)
    assert recorder.batches == [["a", "c", "d"], ["b", "e"], ["f"]]
    assert [answer.batch_size for answer in answers] == [3, 2, 3, 3, 2, 1]


def test_pictures_of_equal_height_or_width_alone_are_not_answered_together():
    recorder = Recorder()
    asked = [request_of("a"), request_of("b", 64, 32), request_of("c", 32, 64), request_of("d", 64, 32)]
    run(BatchQueue(recorder, limit=9, gather_s=0.0), *asked)
    assert recorder.batches == [["a"], ["b", "d"], ["c"]]


def test_the_wait_of_the_oldest_request_is_not_prolonged_by_later_ones():
    recorder = Recorder(seconds=0.0)

    async def main() -> int:
        queue = BatchQueue(recorder, limit=1000, gather_s=0.3)
        running = asyncio.create_task(queue.run())
        first = asyncio.create_task(queue.submit(request_of("first")))
        later: list[asyncio.Task] = []
        while not first.done() and len(later) < 60:
            later.append(asyncio.create_task(queue.submit(request_of("later"))))
            await asyncio.sleep(0.05)
        await asyncio.gather(first, *later)
        running.cancel()
        return len(later)

    assert asyncio.run(main()) < 60  # three seconds


def test_a_wrong_request_is_told_to_its_owner_alone():
    answers = run(BatchQueue(Recorder(), limit=8, gather_s=0.0), request_of("a"), request_of("bad"), request_of("c"))
    assert [type(answer).__name__ for answer in answers] == ["BatchedResult", "RuntimeError", "BatchedResult"]


@pytest.mark.parametrize(("gather_s", "batches"), [(30.0, [["a", "b"]]), (0.0, [["a"], ["b"]])])
def test_a_request_waits_for_company_as_long_as_it_is_told(gather_s, batches):
    recorder = Recorder()

    async def main():
        queue = BatchQueue(recorder, limit=2, gather_s=gather_s)
        running = asyncio.create_task(queue.run())
        first = asyncio.create_task(queue.submit(request_of("a")))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, queue.submit(request_of("b")))
        running.cancel()

    start = time.perf_counter()
    asyncio.run(main())
    assert recorder.batches == batches
    assert time.perf_counter() - start < 10  # a full batch does not wait longer


def test_who_stops_waiting_is_not_answered():
    free = threading.Event()
    recorder = Recorder(free=free)

    async def main():
        queue = BatchQueue(recorder, limit=1, gather_s=0.0)
        running = asyncio.create_task(queue.run())
        first = asyncio.create_task(queue.submit(request_of("a")))
        async with asyncio.timeout(20):
            while not recorder.batches:
                await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.submit(request_of("gone")), 0.02)
        free.set()
        await asyncio.gather(first, queue.submit(request_of("b")))
        running.cancel()

    asyncio.run(main())
    assert recorder.batches == [["a"], ["b"]]


def test_who_is_in_line_at_the_end_is_cancelled():
    async def main():
        queue = BatchQueue(Recorder(0.05), limit=1, gather_s=0.0)
        running = asyncio.create_task(queue.run())
        waiting = [asyncio.create_task(queue.submit(request_of(name))) for name in "abc"]
        await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait(waiting[1:], timeout=2)
        return [task.cancelled() for task in waiting[1:]]

    assert asyncio.run(main()) == [True, True]
