"""Questions that come together are answered together, by one thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ovd.serve.answerer import Question
from ovd.structures import Detections

Answer = Callable[[Sequence[Question]], list[Detections | Exception]]


@dataclass(frozen=True)
class Answered:
    """What was found in one picture."""

    found: Detections
    batch_size: int
    """Number of pictures that were answered together."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    question: Question
    answered: asyncio.Future[Answered]
    since: float
    """Time of the event loop."""


class Batches:
    """A line of questions before one thread, which always takes the oldest and others of its padded shape."""

    def __init__(self, answer: Answer, *, most: int, gather_s: float):
        """
        Args:
            answer: from questions of one padded shape to what was found, or what went wrong, for each.
            most: questions in a batch.
            gather_s: seconds that a question waits for company while the thread is free.
        """
        self._answer = answer
        self._most = most
        self._gather_s = gather_s
        self._line: list[_Waiting] = []
        self._arrived = asyncio.Event()

    async def ask(self, question: Question) -> Answered:
        """Wait in line for the answer. Who stops waiting is no longer answered.

        Raises:
            Exception: what went wrong with this question.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(question, loop.create_future(), loop.time())
        self._line.append(waiting)
        self._arrived.set()
        return await waiting.answered

    async def run(self) -> None:
        """Answer until cancelled; who is still in line is then cancelled, too."""
        loop = asyncio.get_running_loop()
        try:
            with ThreadPoolExecutor(1, "detector") as thread:
                while True:
                    batch = await self._next_batch()
                    questions = [waiting.question for waiting in batch]
                    answers = await loop.run_in_executor(thread, self._answer, questions)
                    for waiting, answer in zip(batch, answers, strict=True):
                        if waiting.answered.done():
                            continue
                        if isinstance(answer, Exception):
                            waiting.answered.set_exception(answer)
                        else:
                            waiting.answered.set_result(Answered(answer, len(batch)))
        finally:
            for waiting in self._line:
                waiting.answered.cancel()

    async def _next_batch(self) -> list[_Waiting]:
        """The oldest question and others of its shape, as many as are there when its time of gathering is over."""
        loop = asyncio.get_running_loop()
        while True:
            batch = self._of_the_oldest_shape()
            left = batch[0].since + self._gather_s - loop.time() if batch else None
            if batch and left is not None and (len(batch) == self._most or left <= 0):
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
        self._line = [waiting for waiting in self._line if not waiting.answered.done()]
        shapes = [waiting.question.picture.padded_shape for waiting in self._line]
        return [waiting for waiting, shape in zip(self._line, shapes, strict=True) if shape == shapes[0]][: self._most]
