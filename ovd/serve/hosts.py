"""The host names and addresses under which a server answers."""

import ipaddress
import socket
from collections.abc import Sequence


def known_hosts(host: str, *, more: Sequence[str] = ()) -> frozenset[str]:
    """Return the host names under which a server answers.

    Args:
        host: host name or address that the server listens on.
        more: names that its owner allows, such as that of a reverse proxy.
    """
    own = () if is_loopback(host) else (socket.gethostname(), f"{socket.gethostname()}.local")
    return frozenset(name.lower() for name in ("localhost", "127.0.0.1", "::1", host, *own, *more))


def is_loopback(host: str) -> bool:
    """Whether a server that listens on this host can be reached from this machine only."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether this is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_name(host: str) -> str:
    """Return the name or address in a `Host` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
