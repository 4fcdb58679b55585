"""What is found in a picture, and where it goes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ovd.data.images.media import Picture
from ovd.structures import Detections


@dataclass(frozen=True)
class Found:
    """What is shown of one picture."""

    picture: Picture
    detections: Detections
    tracks: tuple[int, ...] | None = None
    """Number of the object that each box follows through the video; None if objects are not tracked."""

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """One JSON-able row per box, best first."""
        found = self.detections
        boxes, scores, classes = found.boxes.tolist(), found.scores.tolist(), found.classes.tolist()
        rows: list[dict[str, Any]] = [
            {"class": names[row], "score": round(score, 4), "box_xyxy": [round(value, 1) for value in box]}
            for box, score, row in zip(boxes, scores, classes, strict=True)
        ]
        if self.tracks is not None:
            rows = [{**row, "track": track} for row, track in zip(rows, self.tracks, strict=True)]
        return rows


@runtime_checkable
class Output(Protocol):
    """Where detections go."""

    def add(self, found: Found) -> None:
        """Takes those of one picture; the frames of a video come in their order, without others between them."""

    def close(self) -> None:
        """Writes what is left, after the last picture."""

    def where(self) -> str:
        """Where it all is now, to end a sentence with; empty for standard output."""


def line_of(found: Found, names: Sequence[str]) -> str:
    """A line of JSON; bytes of a file's name that are not UTF-8 are spelled out as the output's `errors` say."""
    picture = found.picture
    frame = {} if picture.frame is None else {"frame": picture.frame, "time_s": round(picture.time_s or 0.0, 3)}
    content = {"image": picture.source, **frame, "detections": found.rows(names)}
    return json.dumps(content, ensure_ascii=False) + "\n"
