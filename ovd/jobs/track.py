"""Follow objects through the frames of a video: ByteTrack (Zhang et al., ECCV 2022), of the package trackers."""

from fractions import Fraction
from types import ModuleType

import torch

from ovd.extras import optional
from ovd.structures import Detections


def tracking_package() -> ModuleType:
    """The package trackers.

    Raises:
        ValueError: it or the package supervision is missing; says how to install them.
    """
    optional("supervision", "video")
    try:
        return optional("trackers", "video")
    except ValueError as error:
        # Its own requirements name an OpenCV build with a GUI, which shadows the headless one.
        raise ValueError(f"{error}, and then pip install --no-deps trackers") from error


class Tracker:
    """Numbers the objects of one video."""

    def __init__(self, rate: Fraction, above: float):
        """
        Args:
            rate: frames per second.
            above: score of a box that may start a track.

        Raises:
            ValueError: the package is missing.
        """
        self._tracker = tracking_package().ByteTrackTracker(
            frame_rate=float(rate), track_activation_threshold=above, high_conf_det_threshold=above
        )

    def update(self, found: Detections) -> tuple[Detections, tuple[int, ...]]:
        """The boxes of the next frame that belong to a track, and the tracks' numbers, from 1.

        A box is given a number in the second frame that has it.
        """
        given = found.to_supervision()
        given.data["row"] = torch.arange(len(found.scores)).numpy()
        tracked = self._tracker.update(given)
        if len(tracked) == 0:  # then it has no data either
            return Detections.empty(), ()
        numbers = zip(tracked.data["row"].tolist(), tracked.tracker_id.tolist(), strict=True)
        kept = sorted((row, number + 1) for row, number in numbers if number >= 0)
        rows = torch.tensor([row for row, _ in kept], dtype=torch.int64)
        return found.take(rows), tuple(number for _, number in kept)
