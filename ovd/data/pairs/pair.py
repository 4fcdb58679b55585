"""One image-text pair."""

from dataclasses import dataclass

from ovd.fault import Fault


@dataclass(frozen=True)
class Pair:
    """One image and its caption."""

    key: str
    image: bytes
    """Encoded image file, JPEG unless its suffix in the shard says otherwise."""
    caption: str
    info: dict
    """Content of the sample's JSON member; empty if there is none."""


def caption_fault(caption: str) -> Fault | None:
    """Return the fault that makes a caption useless for training, or None for a usable caption."""
    if not caption.strip():
        return Fault("F30", "the caption is empty")
    if "\ufffd" in caption:  # replaces invalid bytes; the embedding would be that of another text
        return Fault("F30", "the caption is not UTF-8")
    return None
