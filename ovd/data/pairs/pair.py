"""One image-text pair."""

from dataclasses import dataclass

from ovd.fault import Fault


@dataclass(frozen=True)
class Pair:
    """One image and its caption."""

    key: str
    image: bytes
    """The encoded file, JPEG unless the shard says otherwise by its suffix."""
    caption: str
    info: dict
    """The sample's JSON member; empty where there is none."""


def caption_fault(caption: str) -> Fault | None:
    """What makes a caption useless for training; None for one that can be read."""
    if not caption.strip():
        return Fault("F30", "the caption is empty")
    if "\ufffd" in caption:  # in the place of bad bytes; the embedding would be that of another text
        return Fault("F30", "the caption is not UTF-8")
    return None
