"""Loading of annotations in any supported format, for training and evaluation."""

from dataclasses import replace
from pathlib import Path

from ovd.choices import DataFormatName
from ovd.data.formats.image_sizes import with_real_sizes
from ovd.data.formats.options import NO_OPTIONS, FormatOptions
from ovd.data.formats.supported import FORMATS, check_options
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
    with_parents: bool = False,
) -> AnnotationIndex:
    """Read and check a whole data set.

    Boxes with a side under 1 px are skipped (F4). Boxes partly outside their image are clamped to it, and boxes
    entirely outside are skipped (F5). Classes that have no object and only serve as the parent of other classes are
    left out (F2). `report` counts all of these, and the boxes that are used.

    Args:
        annotations: the JSON file (LVIS, COCO, Objects365); the folder of XML files or a list of their names (VOC);
            data.yaml, or a folder of labels with its classes.txt (YOLO).
        images: image folder; data/README.md says which one for each format. None leaves the image paths relative, for
            work that needs no pixels; YOLO then takes the folder from data.yaml.
        format: key of `ovd.data.formats.supported.FORMATS`.
        report: counts repairs and skips; by default they are not reported.
        options: settings of the format besides the paths.
        with_truth: whether the index carries its ground truth, for evaluation. It is then an error if the size of an
            image has to be read from the image file and cannot be; otherwise the image is skipped and counted (F8,
            F9, F10).
        with_parents: whether to keep the classes that only serve as the parent of others, whose ids a results file may
            contain.

    Raises:
        DataError: F1 the file is incomplete, or a record lacks a required field; F2 an id or an image occurs twice; F3
            unknown images or categories; F6 a box that is not four finite numbers; F7 LVIS without its federated
            labels; F12 many records with a size that their boxes exceed, while the boxes fit into the image file.
        ValueError: an option that the format does not have, or no image folder where one is required.
    """
    report = report or DataReport()
    request = ReadRequest(annotations, images, options, index=True, truth=with_truth, keeps_parents=with_parents)
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
    """Read and check a whole data set once, both as training and as evaluation would.

    Arguments and errors are those of `load_annotations`. Images are treated as in training: an image whose size cannot
    be read is skipped and counted, and YOLO's split is `train` by default.

    Returns:
        The index, and the ground truth for evaluation or the error found in it.
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
    """Read and check the ground truth that the evaluation of a results file needs.

    JSON and XML files may lack every field that concerns pixels.

    Raises:
        DataError, ValueError: as for `load_annotations`.
    """
    request = ReadRequest(annotations, images, options, index=False, truth=True)
    return truth_of(_read(request, format, DataReport()))


def exhaustive_truth(truth: Truth, format: DataFormatName) -> Truth | None:
    """Return the ground truth in which every object of every class has a box.

    For formats that are annotated exhaustively, this is `truth` itself. For the embedded world, its hidden boxes are
    added. For other federated files, it is None.

    Raises:
        DataError: the world's hidden boxes cannot be used, see `with_hidden_boxes`.
    """
    return with_hidden_boxes(truth) if FORMATS[format].is_federated else truth


def _index_of(table: AnnotationTable, format: DataFormatName, report: DataReport) -> AnnotationIndex:
    return index_of(available_part(with_real_sizes(table, report), report), format, report)


def _read(request: ReadRequest, format: DataFormatName, report: DataReport) -> AnnotationTable:
    check_options(request, format, FORMATS)
    return FORMATS[format].read(request, report)
