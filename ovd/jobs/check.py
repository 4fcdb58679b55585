"""Check a whole data set: its faults, record by record, and what training and an evaluation would do with it."""

from dataclasses import dataclass
from pathlib import Path

from ovd.choices import DataFormatName
from ovd.data.annotations import load_for_both
from ovd.data.check import check_images, check_pairs, describe, describe_findings
from ovd.data.formats.options import FormatOptions
from ovd.data.formats.supported import FORMATS
from ovd.data.pairs.tar import PairShards
from ovd.data.report import DataReport
from ovd.data.verdict import evaluation_verdict, training_verdict
from ovd.format_count import format_count


@dataclass(frozen=True)
class DatasetCheck:
    """Result of checking a data set."""

    summary: str
    """Report of several lines, for people to read."""
    is_sound: bool
    """Whether training would leave nothing out, and neither a training nor an evaluation would stop."""


def check_shards(folder: Path) -> DatasetCheck:
    """Check every image and every caption of image-text pairs.

    Args:
        folder: folder of the tar shards.

    Raises:
        DataError, ValueError: as raised by `PairShards`.
    """
    report = DataReport(stops=False)
    shards = PairShards(folder)
    check_pairs(shards, report)
    lines = [
        f"{format_count(len(shards), 'pair')} in {format_count(len(shards.file_names), 'shard')}",
        f"{shards.describe_rejected()}; {format_count(shards.num_undecodable_captions, 'caption')} not in UTF-8",
        *describe_findings(report),
    ]
    return DatasetCheck("\n".join(lines), is_sound=report.num_used() > 0 and not report.has_skipped())


def check_annotations(
    annotations: Path,
    images: Path | None,
    format: DataFormatName,
    options: FormatOptions,
    *,
    with_images: bool,
) -> DatasetCheck:
    """Check every record of an annotated data set, as training and an evaluation would read it.

    Args:
        annotations, images, format, options: as for `load_for_both`.
        with_images: whether to decode every image, too; only then does the report say what training and an evaluation
            would do.

    Raises:
        DataError, ValueError: as raised by `load_for_both`.
    """
    report = DataReport(stops=False)
    index, truth = load_for_both(annotations, images, format=format, report=report, options=options)
    index = FORMATS[format].evaluation_split(index)
    if not with_images:
        return DatasetCheck(describe(index, report, index), is_sound=not report.has_skipped())
    usable = check_images(index, report)
    has_option = "by_base_name" in FORMATS[format].options and not options.by_base_name
    num_learned = len(usable.boxes.values) + len(usable.crowd_boxes.values)
    verdicts = [
        training_verdict(index, report, num_learned, has_option=has_option),
        evaluation_verdict(index, report, truth),
    ]
    lines = [describe(index, report, usable), "", *(verdict.summary for verdict in verdicts)]
    stops = any(verdict.stops for verdict in verdicts)
    return DatasetCheck("\n".join(lines), is_sound=not stops and not report.has_skipped())
