"""Contexts that turn errors in fetching and loading weights into a ValueError that names the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import ovd.clip.tiny_net  # noqa: F401  registers the tiny backbone with timm

MAX_LINES = 21
"""Number of lines shown of torch's error about weights that do not fit: the first, then one per weight."""


@contextmanager
def hub_errors(what: str, advice: str = "") -> Iterator[None]:
    """Turn the errors of an unreachable hub into a ValueError that names what cannot be fetched."""
    try:
        yield
    except Exception as error:  # the hub's client and its callers raise many types
        raise ValueError(
            f"{what} is not in the cache and cannot be downloaded ({_first_line(error)}). Download it on a machine "
            f"with a network, with HF_HUB_OFFLINE unset, and set HF_HOME to the cache{advice}"
        ) from error


@contextmanager
def weights_errors(weights: str, name: str) -> Iterator[None]:
    """Turn the errors of damaged, hostile or unfitting weights into a ValueError that names the weights."""
    try:
        yield
    except Exception as error:  # torch's unpickler raises nearly anything on such bytes; it runs no code in them
        lines = str(error).splitlines()
        if "TorchScript archive" in str(error):
            raise ValueError(
                f"{weights} is a TorchScript archive; docs/backbones.md shows how to convert it"
            ) from error
        if isinstance(error, AssertionError) or (lines and lines[0].startswith("Error(s) in loading state_dict")):
            shown = "\n".join(lines[:MAX_LINES])
            raise ValueError(f"{weights} does not match clip.name {name!r}: {shown}") from error
        raise ValueError(
            f"{weights} cannot be loaded: it is damaged, or contains more than a dict of tensors: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """Return the first sentence of an error's message; without a message, the name of its type."""
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
