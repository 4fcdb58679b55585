"""Make one clean JSON file of what an annotation tool exported, and a report of what was left out or repaired."""

from dataclasses import dataclass
from pathlib import Path

from ovd.choices import ImportFormatName
from ovd.data.check import describe_findings
from ovd.data.formats.options import FormatOptions
from ovd.data.import_boxes import ImportedBoxes, import_boxes, write_boxes
from ovd.data.report import DataReport
from ovd.files import make_folder_of, refuse_existing
from ovd.number_of import number_of
from ovd.warn import warn


@dataclass(frozen=True)
class ImportedFile:
    """A file of boxes that was written, and how it came about."""

    path: Path
    boxes: ImportedBoxes
    report: DataReport

    @property
    def words(self) -> str:
        """A few lines for people to read."""
        counts = ", ".join(
            number_of(len(self.boxes.content[many]), one, many)
            for one, many in (("image", "images"), ("annotation", "annotations"), ("category", "categories"))
        )
        written = f"{self.path}: {counts}; file names start at {self.boxes.images_root}"
        return "\n".join([*describe_findings(self.report), written])


def import_into_file(
    annotations: Path,
    images: Path | None,
    format: ImportFormatName,
    output: Path,
    *,
    options: FormatOptions,
    crowds_as_objects: bool,
) -> ImportedFile:
    """Write OUTPUT and OUTPUT.report.json; a set without a box is a warning.

    Raises:
        ValueError: one of them exists, their folder cannot be made or written to, or as `import_boxes`, before anything
            is written.
    """
    report, report_file = DataReport(), output.with_name(output.name + ".report.json")
    for path in (output, report_file):
        refuse_existing(path)
    make_folder_of(output)
    imported = import_boxes(annotations, images, format, report, options=options, crowds_as_objects=crowds_as_objects)
    write_boxes(output, imported)
    report.used(len(imported.content["images"]))
    report.write(report_file)
    if not imported.content["annotations"]:
        warn(f"{annotations} has no box to import")
    return ImportedFile(output, imported, report)
