"""Connections with time limits: uvicorn limits idle ones only, not those that send or read slowly."""

import asyncio
import contextlib

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ovd.serve.limits import Limits

_REST_SECONDS = 2.0
"""Seconds in which a client may send the rest of a body after its answer: if the connection were closed at once, the
answer might not reach the client."""
_READ_SECONDS = 30.0
"""Seconds in which a client has to read its answer."""


class TimedConnection(H11Protocol):
    """A connection with a time limit for each phase: headers; body and answer; the rest of a body."""

    limits = Limits()
    _doing: tuple[str, int] | None = None
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_time()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_time()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._end is not None:
            self._end.cancel()

    def send_400_response(self, msg: str) -> None:
        """Reply to invalid HTTP, if a reply is still possible, and close the connection."""
        with contextlib.suppress(h11.LocalProtocolError):
            super().send_400_response(msg)
        self.transport.close()

    def _set_time(self) -> None:
        """Start a new time limit if the phase has changed; more bytes of the same phase gain no time."""
        doing, seconds = self._state()
        if doing == self._doing:
            return
        self._doing = doing
        if self._end is not None:
            self._end.cancel()
        self._end = None if self.transport.is_closing() else self.loop.call_later(seconds, self.transport.abort)

    def _state(self) -> tuple[tuple[str, int], float]:
        """Return the phase, its request, and the seconds that it may take."""
        if self.cycle is None:
            return ("head", 0), self.limits.head_seconds
        request = id(self.cycle)
        if not self.cycle.response_complete:
            seconds = self.limits.body_seconds + self.limits.answer_seconds + _READ_SECONDS
            return ("request", request), seconds
        if self.conn.their_state is h11.SEND_BODY:
            return ("rest", request), _REST_SECONDS
        return ("head", request), self.limits.head_seconds


def timed_connections(limits: Limits) -> type[TimedConnection]:
    """Return a class of connections with these limits."""
    return type("LimitedConnection", (TimedConnection,), {"limits": limits})
