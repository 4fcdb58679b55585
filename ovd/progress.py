"""Progress bars for work that takes more than a few seconds."""

import sys
from collections.abc import Iterable
from threading import RLock
from typing import TypeVar

T = TypeVar("T")


def progress(iterable: Iterable[T], total: int, description: str) -> Iterable[T]:
    """Show a bar on stderr for work that lasts over three seconds; in a log file, an update every half minute."""
    from tqdm import tqdm  # here, since it takes longer to import than much of the work that shows no bar

    if not hasattr(tqdm, "_lock"):  # the one it makes would fix how the program that uses ovd starts processes
        tqdm.set_lock(RLock())
    interval_s = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(iterable, total=total, desc=description, delay=3, mininterval=interval_s, maxinterval=interval_s)
