"""The boxes that `import_boxes` reads from a file, by image."""

from pathlib import Path
from typing import Any

from ovd.choices import ImportFormatName
from ovd.data.formats.options import FormatOptions
from ovd.data.import_boxes import import_boxes
from ovd.data.report import DataReport

Found = dict[str, list[tuple[str, list[float]]]]
"""Labels and boxes xywh, by image file."""


def imported_boxes(
    path: Path, text: str, images: Path | None, format: ImportFormatName, **options: Any
) -> tuple[Found, DataReport]:
    """Write `text` to a file, import it, and return its boxes and the report on it."""
    path.write_text(text)
    report = DataReport()
    content = import_boxes(path, images, format, report, options=FormatOptions(**options)).content
    names = {row["id"]: row["name"] for row in content["categories"]}
    files = {row["id"]: row["file_name"] for row in content["images"]}
    found: Found = {file: [] for file in files.values()}
    for row in content["annotations"]:
        found[files[row["image_id"]]].append((names[row["category_id"]], row["bbox"]))
    return found, report
