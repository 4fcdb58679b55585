"""Which requests get in: not those with huge headers, nor those that another site makes a browser send.

A site can make its visitors' browsers send requests to a server on their own machine, and with a host name of its own
that leads there (DNS rebinding) even read the answers. Both show in the headers: `Origin` names the site, `Host` the
name. An address as host cannot be rebound, since no name is looked up.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ovd.serve.hosts import host_name, is_address
from ovd.serve.limits import Refusal
from ovd.serve.replies import refusal_reply

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer: the page loads nothing from elsewhere, runs no script of an answer, and is in no other page."""


class Guard:
    """An ASGI application before another, which refuses requests by their headers and adds `HEADERS` to answers."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], any_address: bool, head_bytes: int):
        """
        Args:
            hosts: names that the server may be called by.
            any_address: whether it may also be called by any address; so where other machines may ask.
            head_bytes: of the path and all headers, at most; uvicorn's bound is for those that come in parts.
        """
        self._app = app
        self._hosts = hosts
        self._any_address = any_address
        self._head_bytes = head_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except Refusal as refusal:
            await refusal_reply(refusal)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> None:
        parts = [scope["raw_path"], scope["query_string"], *(part for header in scope["headers"] for part in header)]
        if sum(map(len, parts)) > self._head_bytes:
            raise Refusal(431, f"The address and the headers are longer than {self._head_bytes} bytes.")
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        name = host_name(hosts[0]) if len(hosts) == 1 else ""
        if name not in self._hosts and not (self._any_address and is_address(name)):
            raise Refusal(421, "This server does not go by that host name; its owner can allow it with --allow-host.")
        if any(origin.partition("://")[2].lower() != hosts[0].lower() for origin in origins) or (
            headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate"
        ):
            raise Refusal(403, "Pages of other sites may not use this server.")
