"""Annotations of any format: what training and evaluation load a data set with."""

from dataclasses import replace
from pathlib import Path

from ovd.choices import DataFormatName
from ovd.data.formats.image_sizes import with_real_sizes
from ovd.data.formats.known import FORMATS, check_options
from ovd.data.formats.options import NO_OPTIONS, FormatOptions
from ovd.data.formats.table import AnnotationTable, ReadRequest, available_part, index_of, truth_of
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataError, DataReport
from ovd.data.truth import Truth
from ovd.data.world.hidden import with_hidden_boxes


def load_annotations(
    annotations: Path,
    images: Path | None,
    *,
    format: DataFormatName,
    report: DataReport | None = None,
    options: FormatOptions = NO_OPTIONS,
    with_truth: bool = False,
) -> AnnotationIndex:
    """Reads and checks a whole data set, once.

    Boxes with a side under 1 px are skipped (F4), boxes partly outside their image are clamped to it and those wholly
    outside are skipped (F5); classes that are but the parent of others are left out (F2). `report` counts them and what
    is used.

    Args:
        annotations: LVIS, COCO, Objects365: the JSON file. VOC: the folder of XML files, or a list of their names.
            YOLO: data.yaml, or a folder of labels with its classes.txt.
        images: the folder of images; data/README.md says which one for each format. None leaves the paths relative, for
            work that needs no pixels; YOLO takes the folder from data.yaml then.
        format: a record of `ovd.data.formats.known.FORMATS`.
        report: counts repairs and skips; by default nobody learns of them.
        with_truth: whether the index carries its truth, for an evaluation. An image whose size has to be read from the
            image itself, and cannot be, is then an error; otherwise it is skipped and counted (F8, F9, F10).

    Raises:
        DataError: F1 not whole, or a record without a required field; F2 an id or an image twice; F3 unknown images or
            categories; F6 a box that is not four finite numbers; F7 LVIS without its federated labels; F12 many records
            with another size than their image, which their boxes leave.
        ValueError: an option that the format does not have, or no folder of images where one is needed.
    """
    report = report or DataReport()
    request = ReadRequest(annotations, images, options, index=True, truth=with_truth)
    table = _read(request, format, report)
    truth = truth_of(table) if with_truth else None
    return replace(_index_of(table, format, report), truth=truth)


def load_for_both(
    annotations: Path,
    images: Path | None,
    *,
    format: DataFormatName,
    report: DataReport,
    options: FormatOptions = NO_OPTIONS,
) -> tuple[AnnotationIndex, Truth | DataError]:
    """Reads and checks a whole data set, once, to see what a training and what an evaluation would do with it.

    Arguments and errors as for `load_annotations`. Images are those of a training: one whose size cannot be read is
    skipped and counted, and YOLO's split is `train` where none is given.

    Returns:
        The index, and the truth that the evaluation would go by, or what is wrong with it.
    """
    request = ReadRequest(annotations, images, options, index=True, truth=True, skips_images=True)
    table = _read(request, format, report)
    truth: Truth | DataError
    try:
        truth = truth_of(table)
    except DataError as error:
        truth = error
    return _index_of(table, format, report), truth


def load_truth(
    annotations: Path, images: Path | None = None, *, format: DataFormatName, options: FormatOptions = NO_OPTIONS
) -> Truth:
    """Reads and checks what the evaluation of a results file needs; JSON and XML may lack all that concerns pixels.

    Raises:
        DataError, ValueError: as `load_annotations`.
    """
    request = ReadRequest(annotations, images, options, index=False, truth=True)
    return truth_of(_read(request, format, DataReport()))


def exhaustive_truth(truth: Truth, format: DataFormatName) -> Truth | None:
    """The truth in which every object of every class has a box: the truth itself in a format whose sets are annotated
    exhaustively, and that of the embedded world; None for other federated files.

    Raises:
        DataError: the world's hidden boxes cannot be used, see `with_hidden_boxes`.
    """
    return with_hidden_boxes(truth) if FORMATS[format].is_federated else truth


def _index_of(table: AnnotationTable, format: DataFormatName, report: DataReport) -> AnnotationIndex:
    return index_of(available_part(with_real_sizes(table, report), report), format, report)


def _read(request: ReadRequest, format: DataFormatName, report: DataReport) -> AnnotationTable:
    check_options(request, format, FORMATS)
    return FORMATS[format].read(request, report)
