"""What goes wrong while weights are fetched and loaded, in words that name them."""

from collections.abc import Iterator
from contextlib import contextmanager

import ovd.clip.tiny_net  # noqa: F401  registers the tiny backbone with timm

MOST_LINES = 21
"""Lines shown of torch's error about weights that do not fit: the first, then one per weight."""


@contextmanager
def hub_errors(what: str, way_out: str = "") -> Iterator[None]:
    """Turns what is raised where a hub cannot be reached into a ValueError that names what is missing."""
    try:
        yield
    except Exception as error:  # the hub's client and those who call it raise what they like
        raise ValueError(
            f"{what} is not in the cache and cannot be fetched ({_first_line(error)}). Fetch it where there is a "
            f"network, with HF_HUB_OFFLINE unset, and name the cache in HF_HOME{way_out}"
        ) from error


@contextmanager
def weights_errors(weights: str, name: str) -> Iterator[None]:
    """Turns what damaged, hostile or other weights raise into a ValueError that names them."""
    try:
        yield
    except Exception as error:  # torch's unpickler raises nearly anything on such bytes; it runs no code in them
        lines = str(error).splitlines()
        if "TorchScript archive" in str(error):
            raise ValueError(
                f"{weights} is a TorchScript archive; docs/backbones.md shows how to convert it"
            ) from error
        if isinstance(error, AssertionError) or (lines and lines[0].startswith("Error(s) in loading state_dict")):
            shown = "\n".join(lines[:MOST_LINES])
            raise ValueError(f"{weights} does not fit clip.name {name!r}: {shown}") from error
        raise ValueError(
            f"{weights} is refused: it is damaged, or contains more than tensors by name: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """The first sentence of what an error says."""
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
