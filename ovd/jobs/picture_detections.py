"""The detections shown of a picture, and the interface of the outputs that write them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ovd.data.images.media import Picture
from ovd.structures import Detections


@dataclass(frozen=True)
class PictureDetections:
    """Detections shown of one picture."""

    picture: Picture
    detections: Detections
    tracks: tuple[int, ...] | None = None
    """Track number of each box in the video; None if objects are not tracked."""

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return one JSON-serializable row per box, best first."""
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
class DetectionOutput(Protocol):
    """Interface of an output that detections are written to."""

    def add(self, found: PictureDetections) -> None:
        """Add the detections of one picture; frames of a video come in order, with no other picture between them."""

    def close(self) -> None:
        """Write the remaining output after the last picture."""

    def describe_location(self) -> str:
        """Return where the output was written, as the end of a sentence; empty for standard output."""


def json_line(found: PictureDetections, names: Sequence[str]) -> str:
    """Format one picture as a JSON line; file names that are not UTF-8 are left to the output's `errors` setting."""
    picture = found.picture
    frame = {} if picture.frame is None else {"frame": picture.frame, "time_s": round(picture.time_s or 0.0, 3)}
    content = {"image": picture.source, **frame, "detections": found.rows(names)}
    return json.dumps(content, ensure_ascii=False) + "\n"
