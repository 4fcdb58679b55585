"""The files that `ovd label` writes: labels in a format, a page to review, and a report."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovd.choices import ExportFormatName
from ovd.data.check import describe_findings
from ovd.data.export.boxes import export_boxes, is_folder, outputs_of
from ovd.data.export.label_studio import LOCAL_FILES
from ovd.data.export.labelled_set import LabelledSet
from ovd.data.report import DataReport
from ovd.data.review_page import write_review
from ovd.files import make_folder_of, refuse_existing
from ovd.number_of import number_of

_NUM_CLASSES_NAMED = 20


@dataclass(frozen=True)
class LabelledSets:
    """What was found in the images that could be read, in their order."""

    kept: LabelledSet
    """Boxes at or above the threshold."""
    below: LabelledSet
    """Boxes of the same images under it, where none is kept: candidates for a review."""


@dataclass(frozen=True)
class LabelOutput:
    """Where the labels of images go, and in which form."""

    path: Path
    """The file, or the folder of yolo and voc; the others lie beside it."""
    format: ExportFormatName
    source: str
    """What made the boxes, in words."""
    review_boxes: int = 0
    """Number of boxes on the page to review; 0 for no page."""
    copy_images: bool = False
    """yolo: whether images are copied instead of linked to."""
    image_url: str = LOCAL_FILES
    """label_studio: what stands before an image's name in its address."""

    @property
    def report(self) -> Path:
        """Counts all images, and those that could not be read."""
        return self.path.with_name(f"{self.path.name}.report.json")

    @property
    def journal(self) -> Path:
        """What an interrupted labelling goes on from (`LabelJournal`)."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def review(self) -> Path | None:
        """The page to review; None for no page."""
        return self._beside(".review.html") if self.review_boxes else None

    def _beside(self, ending: str) -> Path:
        base = self.path if is_folder(self.format) else self.path.with_suffix("")
        return base.with_name(f"{base.name}{ending}")

    def make_room(self) -> None:
        """Make the folder of the files, none of which may exist. What an interrupted labelling left beside its journal
        is written again.

        Raises:
            ValueError: one exists, or the folder cannot be made or written to.
        """
        beside = [] if self.journal.exists() else [self.report, *([self.review] if self.review else [])]
        for path in (*outputs_of(self.path, self.format), *beside):
            refuse_existing(path)
        make_folder_of(self.path)

    def write(self, labels: LabelledSets, thresholds: Sequence[float], report: DataReport, *, kind: str) -> int:
        """Write all files, the labels last.

        Args:
            thresholds: the least score of each name.
            kind: what its scores are, in a word.

        Returns:
            Number of boxes on the page to review.

        Raises:
            ValueError, OSError: as `export_boxes`.
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
    """What a labelling found and wrote."""

    kept: LabelledSet
    report: DataReport
    output: LabelOutput
    limit: str
    """Which boxes are kept, in words."""
    num_shown: int
    """Number of boxes on the page to review."""

    @property
    def words(self) -> str:
        """A few lines for people to read."""
        return printable("\n".join(self._lines()))

    def _lines(self) -> Iterator[str]:
        kept, report, output = self.kept, self.report, self.output
        counts = Counter(kept.names[name] for image in kept.images for name in image.classes.tolist())
        yield from describe_findings(report)
        yield from (f"{count:>8,}  {name}" for name, count in counts.most_common(_NUM_CLASSES_NAMED))
        if len(counts) > _NUM_CLASSES_NAMED:
            yield f"          and {number_of(len(counts) - _NUM_CLASSES_NAMED, 'more class', 'more classes')}"
        num_unread = report.num_seen() - report.num_used()
        unread = f"; {number_of(num_unread, 'image')} could not be read: {output.report.name}" if num_unread else ""
        without = sum(len(image.boxes) == 0 for image in kept.images)
        boxes = f"{number_of(kept.num_boxes, 'box', 'boxes')} of {number_of(len(counts), 'class', 'classes')}"
        yield (
            f"{output.path}: {number_of(len(kept.images), 'image')}, {boxes} with a {self.limit}, "
            f"{number_of(without, 'image')} without any{unread}; file names start at {kept.root}"
        )
        if output.review is not None:
            yield f"{output.review} shows the {number_of(self.num_shown, 'box', 'boxes')} nearest to the threshold"


def printable(text: str) -> str:
    """A text in which names of files that are not UTF-8 are spelled out."""
    return text.encode(errors="backslashreplace").decode()
