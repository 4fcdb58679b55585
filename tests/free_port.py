"""A port for processes that find each other by its number."""

import random
import socket
from contextlib import suppress

_NOBODYS = range(20_000, 30_000)
"""Below those that the kernel gives to whoever asks for any, so that none of these is taken in between."""


def free_port() -> int:
    for port in random.Random().sample(_NOBODYS, 100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise OSError("of 100 ports none is free")
