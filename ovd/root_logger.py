"""Protection of the root logger from packages that log through it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def preserve_root_logger() -> Iterator[None]:
    """Keep packages from configuring the root logger inside this context.

    The `basicConfig` of the program that uses ovd then still takes effect. Warnings of the packages are shown as
    without any configuration.
    """
    root, shown = logging.getLogger(), logging.lastResort
    if root.handlers or shown is None:
        yield
        return
    root.addHandler(shown)  # logging.basicConfig does nothing where the root logger has a handler
    try:
        yield
    finally:
        root.removeHandler(shown)
