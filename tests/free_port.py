"""A free port for processes that find each other by its number."""

import random
import socket
from contextlib import suppress

_NOBODYS = range(20_000, 30_000)
"""Ports below those that the kernel hands out on request, so that none of them is taken in between."""


def free_port() -> int:
    for port in random.Random().sample(_NOBODYS, 100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise OSError("of 100 ports none is free")
