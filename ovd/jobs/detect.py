"""Detect objects in pictures and videos, one source after another."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ovd.build.prompts import Prompt
from ovd.data.images.image_file import ImageError
from ovd.data.images.media import Picture, is_video, pictures_of
from ovd.data.images.video import describe_video
from ovd.data.report import DataReport
from ovd.extras import optional
from ovd.format_count import format_count
from ovd.jobs.picture_detections import DetectionOutput, PictureDetections
from ovd.jobs.track import Tracker, tracking_package
from ovd.progress import progress
from ovd.structures import Detections


def detect_in_sources(
    sources: Sequence[str],
    detect: Callable[[Picture], Detections],
    output: DetectionOutput,
    *,
    track_above: float | None = None,
) -> DataReport:
    """Detect in every picture of the sources; count and skip sources that cannot be read.

    If an error ends the call, the detections made before are still written.

    Args:
        sources: files, or "-" for standard input (`find_media`).
        detect: function that returns the detections to show of a picture.
        track_above: minimum score of a box that may start a track in a video; None for no tracking.

    Returns:
        The number of pictures, of boxes passed to the output, and of sources that could not be read.

    Raises:
        ImageError: there is only one source, and it cannot be read.
        ValueError: the package that reads or tracks videos is missing, and a source is a video.
    """
    if videos := list(filter(is_video, sources)):
        try:
            optional("av", "video")
        except ValueError as error:
            raise ValueError(f"{videos[0]} is a video: {error}; without this package, give only pictures") from None
        if track_above is not None:
            tracking_package()
    report = DataReport(stops=False)
    try:
        _detect_in_each(sources, detect, output, track_above, report)
    except BaseException:  # includes an interruption
        if report.num_used():
            _close_after_an_error(output, report)
        raise
    output.close()
    return report


def _detect_in_each(
    sources: Sequence[str],
    detect: Callable[[Picture], Detections],
    output: DetectionOutput,
    track_above: float | None,
    report: DataReport,
) -> None:
    """Detect in every source and pass the detections to the output; on an error, `report` has the counts up to it."""
    with_bar = len(sources) > 1
    for source in progress(sources, len(sources), "detecting") if with_bar else sources:
        try:
            tracker = None
            if track_above is not None and is_video(source):
                tracker = Tracker(describe_video(Path(source))[0], track_above)
            for picture in _with_bar(source) if not with_bar else pictures_of(source):
                found = PictureDetections(picture, detect(picture))
                if tracker is not None:
                    found = PictureDetections(picture, *tracker.update(found.detections))
                output.add(found)
                report.count_used()
                report.count_used(len(found.detections.scores), unit="box")
        except ImageError as error:
            if len(sources) == 1:
                raise
            report.count_skipped(error.code, str(error))


def _close_after_an_error(output: DetectionOutput, report: DataReport) -> None:
    """Close the output after an error and print where its files are; print a second error instead of raising it."""
    found = f"the detections in {format_count(report.num_used(), 'picture')}"
    try:
        output.close()
    except Exception as error:
        print(f"{found} could not be written: {error}", file=sys.stderr)
    else:
        if where := output.describe_location():
            print(f"{found} before the error are kept{where}", file=sys.stderr)


def _with_bar(source: str) -> Iterator[Picture]:
    """Yield the pictures of the only source, with a progress bar over the frames of a video."""
    pictures = pictures_of(source)
    if is_video(source):
        _, num_frames = describe_video(Path(source))
        yield from progress(pictures, num_frames, "detecting")
    else:
        yield from pictures


def preload_examples(prompts: Sequence[str | Prompt]) -> None:
    """Read the example pictures before any source, so that a bad example is not counted as a bad source.

    Raises:
        ImageError, ValueError: as raised by `Example.read`.
    """
    examples = [example for prompt in prompts if isinstance(prompt, Prompt) for example in prompt.images]
    for example in examples:
        example.read()
