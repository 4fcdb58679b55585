"""Detect queries in pictures and videos, and summarize the result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ovd.data.images.media import Picture
from ovd.data.report import DataReport
from ovd.format_count import format_count
from ovd.jobs.detect import detect_in_sources
from ovd.jobs.picture_detections import DetectionOutput
from ovd.jobs.queries import Query, describe_thresholds
from ovd.predictor import Predictor
from ovd.structures import Detections
from ovd.visualize.boxes import choose_shown


@dataclass(frozen=True)
class DetectJob:
    """Sources, queries, and settings of which boxes are shown."""

    sources: Sequence[str]
    """Files, or "-" for standard input (`find_media`)."""
    queries: Sequence[Query]
    output: DetectionOutput
    threshold: float | None = None
    """Score threshold of queries without their own; None for the detector's."""
    limit: int = 100
    """Maximum number of boxes shown per picture; those with the highest scores are kept."""
    overlapping: bool = False
    """Whether every box above its threshold is shown; otherwise only the best of boxes that overlap."""
    tracks: bool = False
    """Whether objects in videos are tracked and numbered."""
    prints_boxes: bool = True
    """Whether the boxes are also printed if there is only one picture."""


@dataclass(frozen=True)
class DetectResult:
    """Result of a search."""

    report: DataReport
    """Number of pictures, of boxes shown, and of sources that could not be read."""
    num_sources: int
    threshold_text: str
    """Threshold of the boxes shown, in words."""
    where: str
    """Place of the output, as the end of a sentence."""
    best: tuple[float, str]
    """Score of the best box, shown or not, and its class, source and limit in words; score 0 if there is no box."""

    @property
    def summary(self) -> str:
        """Summary in one line, for people to read."""
        num_boxes, (best, of_best) = self.report.num_used("box"), self.best
        text = f"{format_count(num_boxes, 'object')} with a {self.threshold_text}{self.where}"
        if num_boxes == 0 and best > 0:
            text += f"; the best box scores {best:.2f}, {of_best}"
        return text

    def unread_lines(self) -> Iterator[str]:
        """Yield lines that list the sources that could not be read; none if all could be read."""
        num_unread = self.report.num_seen() - self.report.num_used()
        if num_unread:
            yield f"{num_unread} of {format_count(self.num_sources, 'source')} could not be read:"
            for records in self.report.first_records().values():
                yield from (f"    {record}" for record in records)

    @property
    def has_no_readable_source(self) -> bool:
        return self.report.num_used() == 0 < self.report.num_seen()


def detect_queries(predictor: Predictor, search: DetectJob) -> DetectResult:
    """Detect the queries in all sources, and pass the boxes to show to the output.

    Raises:
        ImageError, ValueError: as raised by `detect_in_sources`.
    """
    queries, sources = search.queries, search.sources
    prompts, names = [query.prompt for query in queries], [query.name for query in queries]
    threshold = predictor.threshold if search.threshold is None else search.threshold
    thresholds = [query.threshold(threshold) for query in queries]
    best = (0.0, "")

    def detect(picture: Picture) -> Detections:
        nonlocal best
        found = predictor(picture.pixels, prompts)
        if len(found.scores) > 0:
            of_best = queries[int(found.classes[0])]
            limit = "--threshold" if of_best.min_score is None else "the number after its name"
            words = f"{of_best.name!r} in {picture.source} (lower {limit} to see it)"
            best = max(best, (float(found.scores[0]), words))
        shown = choose_shown(found, thresholds, limit=search.limit, overlapping=search.overlapping)
        if search.prints_boxes and len(sources) == 1 and picture.frame is None:
            _print_boxes(shown, names)
        return shown

    report = detect_in_sources(sources, detect, search.output, track_above=min(thresholds) if search.tracks else None)
    words = describe_thresholds(queries, threshold, "probability" if predictor.is_calibrated else "score")
    return DetectResult(report, len(sources), words, search.output.describe_location(), best)


def _print_boxes(shown: Detections, names: Sequence[str]) -> None:
    for box, score, row in zip(shown.boxes.tolist(), shown.scores.tolist(), shown.classes.tolist(), strict=True):
        print(f"{score:.2f}  {names[row]:<24} {[round(value, 1) for value in box]}")
