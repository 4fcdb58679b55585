"""Look for what is asked for in pictures and videos, and say what was found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ovd.data.images.media import Picture
from ovd.data.report import DataReport
from ovd.jobs.detect import detect_in
from ovd.jobs.found import Output
from ovd.jobs.queries import Query
from ovd.number_of import number_of
from ovd.predictor import Predictor
from ovd.structures import Detections
from ovd.visualize.boxes import choose_shown


@dataclass(frozen=True)
class Search:
    """What is looked for in which sources, and what is shown of it."""

    sources: Sequence[str]
    """Files, or "-" (`find_media`)."""
    queries: Sequence[Query]
    output: Output
    threshold: float | None = None
    """The least score of a box whose query has none of its own; by default the detector's."""
    limit: int = 100
    """Most boxes that are shown of a picture, the best ones."""
    overlapping: bool = False
    """Whether every box above its threshold is shown; else of those at one place the best."""
    tracks: bool = False
    """Whether objects of videos are numbered."""
    prints_boxes: bool = True
    """Whether the boxes of a single picture are printed, too."""


@dataclass(frozen=True)
class SearchResult:
    """What came of a search."""

    report: DataReport
    """Counts pictures, boxes that are shown, and sources that could not be read."""
    num_sources: int
    limit: str
    """Which boxes are shown, in words."""
    where: str
    """Where they are now, to end a sentence with."""
    best: tuple[float, str]
    """Score and words of the best box, shown or not; 0 for none."""

    @property
    def words(self) -> str:
        """One line for people to read."""
        num_boxes, (best, of_best) = self.report.num_used("box"), self.best
        text = f"{number_of(num_boxes, 'object')} with a {self.limit}{self.where}"
        if num_boxes == 0 and best > 0:
            text += f"; the best box has {best:.2f}, {of_best} (--threshold)"
        return text

    def unread(self) -> Iterator[str]:
        """Lines of what could not be read; none if all could be."""
        num_unread = self.report.num_seen() - self.report.num_used()
        if num_unread:
            yield f"{num_unread} of {self.num_sources} sources could not be read:"
            for records in self.report.first_records().values():
                yield from (f"    {record}" for record in records)

    @property
    def has_read_nothing(self) -> bool:
        return self.report.num_used() == 0 < self.report.num_seen()


def detect_queries(predictor: Predictor, search: Search) -> SearchResult:
    """Detect, and give what is shown to the output; errors as of `detect_in`."""
    queries, sources = search.queries, search.sources
    prompts, names = [query.prompt for query in queries], [query.name for query in queries]
    threshold = predictor.threshold if search.threshold is None else search.threshold
    thresholds = [query.threshold(threshold) for query in queries]
    best = (0.0, "")

    def detect(picture: Picture) -> Detections:
        nonlocal best
        found = predictor(picture.pixels, prompts)
        if len(found.scores) > 0:
            of_picture = (float(found.scores[0]), f"{names[int(found.classes[0])]!r} in {picture.source}")
            best = max(best, of_picture)
        shown = choose_shown(found, thresholds, limit=search.limit, overlapping=search.overlapping)
        if search.prints_boxes and len(sources) == 1 and picture.frame is None:
            _print_boxes(shown, names)
        return shown

    report = detect_in(sources, detect, search.output, track_above=min(thresholds) if search.tracks else None)
    kind = "probability" if predictor.is_calibrated else "score"
    own = ", or the one after its name" if any(query.min_score is not None for query in queries) else ""
    limit = f"{kind} of at least {threshold:.2f}{own}"
    return SearchResult(report, len(sources), limit, search.output.where(), best)


def _print_boxes(shown: Detections, names: Sequence[str]) -> None:
    for box, score, row in zip(shown.boxes.tolist(), shown.scores.tolist(), shown.classes.tolist(), strict=True):
        print(f"{score:.2f}  {names[row]:<24} {[round(value, 1) for value in box]}")
