"""Work that threads do ahead of the one that needs it, and the cores that there are for it."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Number of the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Iterator[Result]:
    """What a function returns for each item, in order, from threads that go on while the caller uses a result.

    Args:
        ahead: number of items that are under way or done and not yet used; it bounds the memory.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        under_way = deque(pool.submit(function, item) for item in islice(remaining, ahead))
        while under_way:
            result = under_way.popleft().result()
            under_way.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
