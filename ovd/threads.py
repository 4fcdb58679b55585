"""Work ahead of time in threads, and the number of available cores."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Iterator[Result]:
    """Yield the result of a function for each item, in order, while threads compute the next results.

    Args:
        threads: number of threads.
        ahead: maximum number of items in progress or finished and not yet yielded; it bounds the memory.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        under_way = deque(pool.submit(function, item) for item in islice(remaining, ahead))
        while under_way:
            result = under_way.popleft().result()
            under_way.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
