"""The files that `ovd label` writes: labels in a format, a page to review, and a report."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovd.choices import ExportFormatName
from ovd.data.check import describe_findings
from ovd.data.export.boxes import export_boxes, is_folder, outputs_of
from ovd.data.export.label_studio import LOCAL_FILES
from ovd.data.export.labeled_set import LabeledSet
from ovd.data.report import DataReport
from ovd.data.review_page import write_review
from ovd.files import make_parent_folder, refuse_existing
from ovd.format_count import format_count

_NUM_CLASSES_NAMED = 20


@dataclass(frozen=True)
class LabeledSets:
    """Labels of the images that could be read, in the order of the images."""

    kept: LabeledSet
    """Boxes at or above their thresholds."""
    below: LabeledSet
    """Boxes of the same images below their thresholds, where no box is kept: candidates for review."""


@dataclass(frozen=True)
class LabelOutput:
    """Output files of a labeling, and their format."""

    path: Path
    """Label file, or folder for yolo and voc; the other files are written beside it."""
    format: ExportFormatName
    source: str
    """Origin of the boxes, in words."""
    review_boxes: int = 0
    """Number of boxes on the review page; 0 for no page."""
    copy_images: bool = False
    """Whether to copy the images instead of linking to them; yolo only."""
    image_url: str = LOCAL_FILES
    """Prefix of an image's name in its URL; label_studio only."""

    @property
    def report(self) -> Path:
        """Path of the report, which counts all images and those that could not be read."""
        return self.path.with_name(f"{self.path.name}.report.json")

    @property
    def journal(self) -> Path:
        """Path of the journal, from which an interrupted labeling is resumed (`LabelJournal`)."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def review(self) -> Path | None:
        """Path of the review page; None for no page."""
        return self._beside(".review.html") if self.review_boxes else None

    def _beside(self, ending: str) -> Path:
        base = self.path if is_folder(self.format) else self.path.with_suffix("")
        return base.with_name(f"{base.name}{ending}")

    def prepare_folder(self) -> None:
        """Check that no output file exists, and make the folder for them.

        Report and review page may exist beside the journal of an interrupted labeling; they are written again.

        Raises:
            ValueError: a file exists, or the folder cannot be made or written to.
        """
        beside = [] if self.journal.exists() else [self.report, *([self.review] if self.review else [])]
        for path in (*outputs_of(self.path, self.format), *beside):
            refuse_existing(path)
        make_parent_folder(self.path)

    def write(self, labels: LabeledSets, thresholds: Sequence[float], report: DataReport, *, kind: str) -> int:
        """Write all files, the labels last.

        Args:
            thresholds: minimum score of each name.
            kind: word for the scores, `probability` or `score`.

        Returns:
            Number of boxes on the review page.

        Raises:
            ValueError, OSError: as raised by `export_boxes`.
        """
        report.write(self.report)
        num_shown = 0
        if self.review is not None:
            num_shown = write_review(
                labels.kept,
                labels.below,
                thresholds,
                self.review,
                limit=self.review_boxes,
                title=printable(self.path.name),
                saved_as=printable(self._beside(".reviewed.json").name),
                kind=kind,
            )
        export_boxes(
            labels.kept,
            self.path,
            self.format,
            source=self.source,
            copy_images=self.copy_images,
            image_url=self.image_url,
        )
        return num_shown


@dataclass(frozen=True)
class WrittenLabels:
    """Result of a labeling."""

    kept: LabeledSet
    report: DataReport
    output: LabelOutput
    threshold_text: str
    """Threshold of the boxes kept, in words."""
    num_shown: int
    """Number of boxes on the review page."""

    @property
    def summary(self) -> str:
        """Summary in a few lines, for people to read."""
        return printable("\n".join(self._lines()))

    def _lines(self) -> Iterator[str]:
        kept, report, output = self.kept, self.report, self.output
        counts = Counter(kept.names[name] for image in kept.images for name in image.classes.tolist())
        yield from describe_findings(report)
        yield from (f"{count:>8,}  {name}" for name, count in counts.most_common(_NUM_CLASSES_NAMED))
        if len(counts) > _NUM_CLASSES_NAMED:
            yield f"          and {format_count(len(counts) - _NUM_CLASSES_NAMED, 'more class', 'more classes')}"
        num_unread = report.num_seen() - report.num_used()
        unread = f"; {format_count(num_unread, 'image')} could not be read: {output.report.name}" if num_unread else ""
        without = sum(len(image.boxes) == 0 for image in kept.images)
        boxes = f"{format_count(kept.num_boxes, 'box', 'boxes')} of {format_count(len(counts), 'class', 'classes')}"
        yield (
            f"{output.path}: {format_count(len(kept.images), 'image')}, {boxes} with a {self.threshold_text}, "
            f"{format_count(without, 'image')} without any{unread}; file names are relative to {kept.root}"
        )
        if kept.num_boxes == 0:
            yield (
                "no box was kept: run `ovd detect` on an image for the score of its best box, then label again with a "
                "lower --threshold and another --output"
            )
        if output.review is not None:
            yield f"{output.review} shows the {format_count(self.num_shown, 'box', 'boxes')} nearest to the threshold"


def printable(text: str) -> str:
    """Replace the bytes of file names that are not UTF-8 by escape sequences, so that a text can be printed."""
    return text.encode(errors="backslashreplace").decode()
