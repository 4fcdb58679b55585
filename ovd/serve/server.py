"""Run an application under uvicorn until it is interrupted."""

import asyncio
import contextlib
import logging
import socket

import uvicorn
from starlette.types import ASGIApp

from ovd.serve.connection import timed_connections
from ovd.serve.limits import Limits

_END_SECONDS = 5
"""Seconds in which requests have to end after an interrupt."""


def open_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        ValueError: the port is taken, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another port with --port"
        ) from None


def address(listening: socket.socket) -> str:
    """Return the URL of a server that listens on a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """Return a uvicorn server of an application, with limits on connections, headers and the time of its shutdown."""
    config = uvicorn.Config(
        app,
        http=timed_connections(limits),
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=_END_SECONDS,
        h11_max_incomplete_event_size=limits.head_bytes,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_worth_logging)
    return uvicorn.Server(config)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Whether to log a record: not the useless traceback of a request that the shutdown cancelled."""
    return not (record.exc_info and record.exc_info[0] is asyncio.CancelledError)


def run_server(app: ASGIApp, listening: socket.socket, limits: Limits) -> None:
    """Serve until SIGINT, after which requests in progress have a few seconds to end."""
    with contextlib.suppress(KeyboardInterrupt):
        make_server(app, limits).run(sockets=[listening])
