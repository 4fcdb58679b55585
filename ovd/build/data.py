"""Build the data sets of a config: the annotation indexes for training and evaluation."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from ovd.build.batches import sample_sizes
from ovd.build.data_root import data_root, in_data_root, starts_at_root
from ovd.build.world import world_folder
from ovd.choices import DataFormatName
from ovd.config.training import FileData, TrainConfig, WorldData
from ovd.data.annotations import exhaustive_truth, load_annotations
from ovd.data.formats.image_names import check_images_exist
from ovd.data.formats.options import NO_OPTIONS, FormatOptions, SharedOptions
from ovd.data.formats.supported import FORMATS
from ovd.data.held_out import held_out_images, held_out_names
from ovd.data.index import AnnotationIndex
from ovd.data.loading.loader import LoaderOptions
from ovd.data.loading.small_objects import count_small_objects
from ovd.data.report import DataError, DataReport
from ovd.data.verdict import check_trainable
from ovd.distributed import is_main
from ovd.format_count import format_count
from ovd.warn import warn


def load_training_index(config: TrainConfig, report: DataReport | None = None) -> AnnotationIndex:
    """Load the training set, without the novel classes' annotations if `data.classes` is `base`.

    Raises:
        ValueError: the data set has no novel classes, and `data.classes` is `base`.
        VocabularyLeak: a novel class's name would be trained on.
        DataError: F1 there is no class, or no box that could be learned from; F4 all objects are too small at
            `data.size`.
    """
    report = report or DataReport()
    source = config.data.source
    format = FORMATS[source.format if isinstance(source, FileData) else "lvis"]
    split = format.evaluation_split if config.data.classes == "all" else format.base_split
    if split is None:
        with_novel = [name for name, other in FORMATS.items() if other.base_split is not None]
        where = data_root() / source.train_annotations if isinstance(source, FileData) else source.root
        raise ValueError(
            f"{where}: data.classes is `base`, but only the formats {' and '.join(with_novel)} define "
            "novel classes; set data.classes=all"
        )
    index = split(load_whole_training_set(source, report))
    check_trainable(index, report, needs_boxes=config.data.pairs is None)
    count_small_objects(index, report, sample_sizes(config))
    return index


@dataclass(frozen=True)
class HeldOut:
    """Images and class names that a run holds out of training, to calibrate on."""

    index: AnnotationIndex
    """Held-out images, with the training vocabulary."""
    names: Bool[np.ndarray, " C"]
    """Whether each class's name is held out of training."""


def hold_out(config: TrainConfig, index: AnnotationIndex) -> tuple[AnnotationIndex, HeldOut | None]:
    """Split a training set into the images to train on and the part that `train.calibration` holds out.

    Images that `data.held_out` leaves out are not used in this stage.

    Raises:
        ValueError: the training set is too small.
    """
    options = config.train.calibration
    if options is None:
        if config.data.held_out == 0:
            return index, None
        return index.take(np.flatnonzero(~held_out_images(index, config.data.held_out))), None
    images = held_out_images(index, options.images)
    if not images.any():
        raise ValueError(
            f"{index.path}: {format_count(len(index), 'image')} to train on, too few to hold some out; "
            "set train.calibration=null"
        )
    held_out = HeldOut(index.take(np.flatnonzero(images)), held_out_names(index, options))
    return index.take(np.flatnonzero(~images)), held_out


def load_whole_training_set(source: WorldData | FileData, report: DataReport) -> AnnotationIndex:
    """Load the training set of a source with all its classes."""
    if isinstance(source, WorldData):
        world = world_folder(source, "train")
        annotations = world / "annotations" / "lvis_train.json"
        return load_annotations(annotations, world / "images", format="lvis", report=report)
    return load_annotations(
        in_data_root(source.train_annotations, "train_annotations"),
        _images_folder(source.train_images, source.format),
        format=source.format,
        report=report,
        options=_format_options(source, source.train_split),
    )


def load_validation_index(config: TrainConfig, report: DataReport | None = None) -> AnnotationIndex | None:
    """Load the validation set with its whole vocabulary and ground truth; return None if the config has none."""
    match config.data.source:
        case WorldData() as source:
            world = world_folder(source, "val")
            return load_evaluation_index(
                world / "annotations" / "lvis_val.json", world / "images", "lvis", report=report
            )
        case FileData() as source:
            if source.val_annotations is None:
                return None
            images = _images_folder(source.val_images or source.train_images, source.format)
            options = _format_options(source, source.val_split)
            annotations = in_data_root(source.val_annotations, "val_annotations")
            return load_evaluation_index(annotations, images, source.format, report=report, options=options)


def load_evaluation_index(
    annotations: Path,
    images: Path | None,
    format: DataFormatName,
    *,
    report: DataReport | None = None,
    options: FormatOptions = NO_OPTIONS,
) -> AnnotationIndex:
    """Load a data set with the vocabulary and the images that its benchmark evaluates; see `load_annotations`.

    The exhaustive ground truth is added where the format or the embedded world provides it.
    """
    index = load_annotations(annotations, images, format=format, report=report, options=options, with_truth=True)
    assert index.truth is not None
    index = replace(index, exhaustive_truth=exhaustive_truth(index.truth, format))
    return FORMATS[format].evaluation_split(index)


def evaluation_loading(config: TrainConfig) -> LoaderOptions:
    """Return the batch size and number of workers with which an evaluation loads its images."""
    return LoaderOptions(config.eval.batch_size, config.data.workers)


def check_all_exist(index: AnnotationIndex, source: WorldData | FileData, *, all_needed: bool) -> None:
    """Check that the image files of a data set exist, without opening them, and warn of missing ones.

    Raises:
        DataError: F8 an image is missing and `all_needed` is set, or too many are missing.
    """
    by_base_name = isinstance(source, FileData) and source.by_base_name
    has_option = "by_base_name" in FORMATS[index.format].options and not by_base_name
    try:
        num_missing = check_images_exist(
            index.path, index.image_files, index.images_root, all_needed=all_needed, has_option=has_option
        )
    except DataError as error:
        raise DataError(error.code, f"{error}{_missing_folder_hint(index.images_root, source)}") from None
    if num_missing and is_main():
        where = f"{num_missing} of its {format_count(len(index), 'image')} cannot be found"
        warn(f"{index.path}: {where}, and will be left out and counted", code="F8")


def _missing_folder_hint(root: Path | None, source: WorldData | FileData) -> str:
    """Return the end of an error message: the image folder as the config has it; empty if the folder exists."""
    if root is None or root.is_dir() or isinstance(source, WorldData):
        return ""
    for key, folder in (("train_images", source.train_images), ("val_images", source.val_images)):
        if folder is not None and not folder.is_absolute() and data_root() / folder == root:
            return f": {starts_at_root(folder, key)}"
    return ""


def _images_folder(folder: Path | None, format: DataFormatName) -> Path | None:
    if folder is None and not FORMATS[format].finds_images:
        raise ValueError(f"data.source.train_images is not set; format {format} needs the folder of the images")
    return None if folder is None else data_root() / folder


def _format_options(source: FileData, split: str | None) -> FormatOptions:
    shared = {field.name: getattr(source, field.name) for field in fields(SharedOptions)}
    if source.class_names is not None:
        shared["class_names"] = data_root() / source.class_names
    return FormatOptions(**shared, split=split)
