"""Refuse requests with huge headers, and requests that another site makes a browser send.

A site can make its visitors' browsers send requests to a server on their own machine. If a host name of the site
resolves to that machine (DNS rebinding), it can even read the answers. Both show in the headers: `Origin` has the site,
`Host` the name. An IP address as host cannot be rebound, since no name is resolved.
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
"""Headers of every answer: the page loads nothing from elsewhere, runs no script of an answer, and cannot be embedded
in another page."""


class Guard:
    """An ASGI application around another, which refuses requests by their headers and adds `HEADERS` to answers."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], any_address: bool, head_bytes: int):
        """
        Args:
            hosts: host names that requests may have.
            any_address: whether requests may also have any IP address as host, as needed if other machines may ask.
            head_bytes: largest size in bytes of path, query and headers; uvicorn's limit is for those sent in parts.
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
            raise Refusal(421, "This server does not accept that host name; its owner can allow it with --allow-host.")
        if any(origin.partition("://")[2].lower() != hosts[0].lower() for origin in origins) or (
            headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate"
        ):
            raise Refusal(403, "Pages of other sites may not use this server.")
