"""Packages that log through the root logger, and what that does to the program that uses ovd."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def root_logger_left_alone() -> Iterator[None]:
    """A context in which such a package does not configure the root logger, so that the program's own `basicConfig`
    still counts; its warnings are shown as without any configuration."""
    root, shown = logging.getLogger(), logging.lastResort
    if root.handlers or shown is None:
        yield
        return
    root.addHandler(shown)  # logging.basicConfig does nothing where the root logger has a handler
    try:
        yield
    finally:
        root.removeHandler(shown)
