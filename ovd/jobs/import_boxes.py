"""Convert an export of an annotation tool to one clean JSON file, with a report of what was left out or repaired."""

from dataclasses import dataclass
from pathlib import Path

from ovd.choices import ImportFormatName
from ovd.data.check import describe_findings
from ovd.data.formats.options import FormatOptions
from ovd.data.import_boxes import ImportedBoxes, import_boxes, write_boxes
from ovd.data.report import DataReport
from ovd.files import make_parent_folder, refuse_existing
from ovd.format_count import format_count
from ovd.warn import warn


@dataclass(frozen=True)
class ImportedFile:
    """A written annotation file, with its boxes and the report of the import."""

    path: Path
    boxes: ImportedBoxes
    report: DataReport

    @property
    def summary(self) -> str:
        """Summary in a few lines, for people to read."""
        counts = ", ".join(
            format_count(len(self.boxes.content[many]), one, many)
            for one, many in (("image", "images"), ("annotation", "annotations"), ("category", "categories"))
        )
        written = f"{self.path}: {counts}; file names are relative to {self.boxes.images_root}"
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
    """Import annotations into the file OUTPUT, and write OUTPUT.report.json; warn if there is no box.

    Raises:
        ValueError: one of the two files exists, their folder cannot be made or written to, or as raised by
            `import_boxes`; no file is written then.
    """
    report, report_file = DataReport(), output.with_name(output.name + ".report.json")
    for path in (output, report_file):
        refuse_existing(path)
    make_parent_folder(output)
    imported = import_boxes(annotations, images, format, report, options=options, crowds_as_objects=crowds_as_objects)
    write_boxes(output, imported)
    report.count_used(len(imported.content["images"]))
    report.write(report_file)
    if not imported.content["annotations"]:
        warn(f"{annotations} has no boxes to import")
    return ImportedFile(output, imported, report)
