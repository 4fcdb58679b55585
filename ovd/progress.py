"""Progress bars for work that takes more than a few seconds."""

import sys
from collections.abc import Iterable
from threading import RLock
from typing import TypeVar

T = TypeVar("T")


def progress(iterable: Iterable[T], total: int, description: str) -> Iterable[T]:
    """Show a progress bar on stderr once the work takes over three seconds; in a log file, update it every 30 s."""
    from tqdm import tqdm  # imported here because its import takes longer than much of the work that shows no bar

    if not hasattr(tqdm, "_lock"):  # tqdm's default lock would fix the start method of the program's processes
        tqdm.set_lock(RLock())
    interval_s = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(iterable, total=total, desc=description, delay=3, mininterval=interval_s, maxinterval=interval_s)
