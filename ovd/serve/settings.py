"""How a server answers; imports nothing that `ovd serve --help` would wait for."""

from dataclasses import dataclass, field

from ovd.serve.limits import Limits


@dataclass(frozen=True)
class Settings:
    """How a server answers."""

    model: str
    """The detector's name."""
    threshold: float
    """Least score of the boxes that are reported where a request says no other."""
    hosts: frozenset[str]
    """Names that the server may be called by."""
    any_address: bool = False
    """Whether it may be called by any address."""
    batch: int = 8
    """Pictures that are detected in together, at most."""
    gather_ms: float = 5.0
    """Milliseconds that a request waits for company."""
    limits: Limits = field(default_factory=Limits)
