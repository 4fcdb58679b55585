"""Track objects through the frames of a video with ByteTrack (Zhang et al., ECCV 2022), from the package trackers."""

from fractions import Fraction
from types import ModuleType

import torch

from ovd.extras import optional
from ovd.structures import Detections


def tracking_package() -> ModuleType:
    """Import the package trackers.

    Raises:
        ValueError: it or the package supervision is missing; the message says how to install them.
    """
    optional("supervision", "video")
    try:
        return optional("trackers", "video")
    except ValueError as error:
        # The requirements of trackers name an OpenCV build with a GUI, which shadows the headless one.
        raise ValueError(f"{error}, then pip install --no-deps trackers") from error


class Tracker:
    """Tracker of the objects in one video."""

    def __init__(self, rate: Fraction, above: float):
        """
        Args:
            rate: frames per second.
            above: minimum score of a box that may start a track.

        Raises:
            ValueError: as raised by `tracking_package`.
        """
        self._tracker = tracking_package().ByteTrackTracker(
            frame_rate=float(rate), track_activation_threshold=above, high_conf_det_threshold=above
        )

    def update(self, found: Detections) -> tuple[Detections, tuple[int, ...]]:
        """Return the boxes of the next frame that belong to a track, and their track numbers, counted from 1.

        An object gets its number in the second frame in which it is detected.
        """
        given = found.to_supervision()
        given.data["row"] = torch.arange(len(found.scores)).numpy()
        tracked = self._tracker.update(given)
        if len(tracked) == 0:  # an empty result has no `data`
            return Detections.empty(), ()
        numbers = zip(tracked.data["row"].tolist(), tracked.tracker_id.tolist(), strict=True)
        kept = sorted((row, number + 1) for row, number in numbers if number >= 0)
        rows = torch.tensor([row for row, _ in kept], dtype=torch.int64)
        return found.take(rows), tuple(number for _, number in kept)
