"""Settings of a server, without imports that would slow down `ovd serve --help`."""

from dataclasses import dataclass, field

from ovd.serve.limits import Limits


@dataclass(frozen=True)
class Settings:
    """Settings of a server."""

    model: str
    """Name of the detector."""
    threshold: float
    """Lowest score of a reported box, unless the request sets its own."""
    hosts: frozenset[str]
    """Host names that requests may have."""
    any_address: bool = False
    """Whether requests may have any IP address as host."""
    batch: int = 8
    """Largest number of pictures in a batch."""
    gather_ms: float = 5.0
    """Milliseconds that a request waits for others to join its batch."""
    limits: Limits = field(default_factory=Limits)
