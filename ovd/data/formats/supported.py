"""The annotation formats, one `DataFormat` each. A new one needs a reader, a name in `ovd.choices`, and a record."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, get_args

from ovd.choices import DataFormatName, ImportFormatName
from ovd.data.coco_zero_shot import GROUPS, split_coco_base, split_coco_evaluation
from ovd.data.formats.coco_json import read_coco_json
from ovd.data.formats.objects365 import read_objects365
from ovd.data.formats.options import FormatOptions
from ovd.data.formats.table import AnnotationTable, ReadRequest
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.data.vocabulary import split_lvis_base

Split = Callable[[AnnotationIndex], AnnotationIndex]
FormatName = TypeVar("FormatName", DataFormatName, ImportFormatName)


# VOC and YOLO are imported when used, since only they need parsers of XML and YAML, and Pillow.


def _read_voc(request: ReadRequest, report: DataReport) -> AnnotationTable:
    from ovd.data.formats.voc import read_voc

    return read_voc(request, report)


def _read_yolo(request: ReadRequest, report: DataReport) -> AnnotationTable:
    from ovd.data.formats.yolo import read_yolo

    return read_yolo(request, report)


def _whole(index: AnnotationIndex) -> AnnotationIndex:
    return index


@dataclass(frozen=True)
class DataFormat:
    """Everything that depends on the format of a data set."""

    read: Callable[[ReadRequest, DataReport], AnnotationTable]
    is_federated: bool = False
    """Whether images are annotated for some classes only, and evaluated by LVIS's protocol; else for all classes."""
    groups: Mapping[str, Collection[str]] | None = None
    """Class names by group. Each group has an AP50 of its own; classes in no group are not evaluated."""
    base_split: Split | None = None
    """Function that removes the novel classes from a training set; None if the format does not define novel classes."""
    evaluation_split: Split = _whole
    """Function that keeps the classes and images that the benchmark evaluates; also for training on all of these."""
    options: frozenset[str] = frozenset()
    """Fields of `FormatOptions` that the format supports."""
    is_coco_json: bool = True
    """Whether other tools that take COCO or LVIS JSON can read the annotation file themselves."""
    finds_images: bool = False
    """Whether the annotations state where the images are, so that the image folder may be omitted."""


JSON_OPTIONS = frozenset({"xyxy", "by_base_name", "sizes_from_images"})

FORMATS: dict[DataFormatName, DataFormat] = {
    "lvis": DataFormat(
        read=partial(read_coco_json, federated=True),
        is_federated=True,
        base_split=split_lvis_base,
        options=JSON_OPTIONS,
    ),
    "coco": DataFormat(read=partial(read_coco_json, federated=False), options=JSON_OPTIONS),
    "coco_zero_shot": DataFormat(
        read=partial(read_coco_json, federated=False),
        groups=GROUPS,
        base_split=split_coco_base,
        evaluation_split=split_coco_evaluation,
        options=JSON_OPTIONS,
    ),
    "objects365": DataFormat(read=read_objects365, options=JSON_OPTIONS),
    "voc": DataFormat(
        read=_read_voc,
        options=frozenset({"class_names", "zero_based", "by_base_name", "sizes_from_images"}),
        is_coco_json=False,
    ),
    "yolo": DataFormat(read=_read_yolo, options=frozenset({"split"}), is_coco_json=False, finds_images=True),
}
assert FORMATS.keys() == set(get_args(DataFormatName)), "each name of DataFormatName has one record"


def check_options(request: ReadRequest, format: FormatName, formats: Mapping[FormatName, DataFormat]) -> None:
    """Check that a format supports all options that are set.

    Raises:
        ValueError: the format does not support an option.
    """
    for option, value in vars(request.options).items():
        if option not in formats[format].options and value != getattr(FormatOptions, option):
            owners = ", ".join(name for name, other in formats.items() if option in other.options)
            raise ValueError(
                f"{request.annotations}: the option {option} cannot be used with format {format}, only with {owners}"
            )
