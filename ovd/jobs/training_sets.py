"""The data sets of a training: the training set, the part of it that is held out, and the validation set."""

import os
from dataclasses import dataclass

import numpy as np

from ovd.build.data import HeldOut, check_all_exist, hold_out, load_training_index, load_validation_index
from ovd.config.training import TrainConfig
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.data.verdict import check_evaluable
from ovd.distributed import main_first
from ovd.format_count import format_count
from ovd.join_first import join_first
from ovd.warn import warn


@dataclass(frozen=True)
class TrainingSets:
    """Data sets of a training, each with its own vocabulary."""

    whole: AnnotationIndex
    """Whole training set."""
    trained: AnnotationIndex
    """Part of the training set that is trained on."""
    held_out: HeldOut | None
    """Part of the training set that is used for calibration; None without `train.calibration`."""
    validation: AnnotationIndex | None
    """Validation set with its ground truth; None if nothing is evaluated."""


def load_training_sets(
    config: TrainConfig,
    report: DataReport,
    validation_report: DataReport | None = None,
    *,
    evaluate: bool = True,
) -> TrainingSets:
    """Load the data sets of a training, and check that their image files exist, without opening them.

    Args:
        report, validation_report: reports of reading the training and the validation set.
        evaluate: whether to load the validation set; `train.patience`, which depends on evaluations, implies it.

    Raises:
        ValueError: as raised by `load_training_index`, `hold_out` and `check_all_exist`; or the validation set has no
            class; or `train.patience` is set, and there is no validation set or it has no box.
    """
    source = config.data.source
    with main_first():  # loading may have to draw the embedded world
        whole = load_training_index(config, report)
        check_all_exist(whole, source, all_needed=False)
        trained, held_out = hold_out(config, whole)
        validation = load_validation_index(config, validation_report) if evaluate or config.train.patience else None
        _check_validation(config, validation)
        if validation is not None:
            check_all_exist(validation, source, all_needed=True)
    return TrainingSets(whole, trained, held_out, validation)


def _check_validation(config: TrainConfig, validation: AnnotationIndex | None) -> None:
    """Check that the validation set has a class, and for `train.patience`, that it exists and has a box.

    Without `train.patience`, a set without a box is a warning.

    Raises:
        ValueError: a check fails.
    """
    if validation is None:
        if config.train.patience:
            raise ValueError("train.patience needs evaluations on a validation set (data.source.val_annotations)")
        return
    check_evaluable(validation)
    if len(validation.boxes.values):
        return
    if config.train.patience:
        raise ValueError(
            f"train.patience needs the validation AP, but {validation.path} has no boxes; give another validation set"
        )
    warn(f"{validation.path} has no boxes, so the validation metrics will be meaningless")


def warn_of_absent_classes(config: TrainConfig, index: AnnotationIndex) -> None:
    """Warn of classes without a box, which are trained on as absent from every image if all classes are scored."""
    if config.train.negatives != "all" or index.negative_classes.offsets[-1]:  # LVIS lists absent classes
        return
    has_box = np.bincount(index.classes.values, minlength=len(index.categories)) > 0
    without = [name for name, has in zip(index.names, has_box.tolist(), strict=True) if not has]
    if without:
        warn(
            f"{format_count(len(without), 'class', 'classes')} without a box will be trained on as absent from every "
            f"image (train.negatives=all): {join_first(without)}; remove from the categories what may be in the images"
        )


def warn_of_trained_images(training: AnnotationIndex, validation: AnnotationIndex) -> None:
    """Warn of validation images that are also trained on, such as all of them if both sets are one file."""
    num_trained = len(_image_paths(training) & _image_paths(validation))
    if num_trained:
        warn(
            f"{num_trained:,} of {format_count(len(validation), 'image')} of {validation.path} are also in the "
            f"training set, {training.path}, so the validation metrics will be measured on images that are trained on"
        )


def _image_paths(index: AnnotationIndex) -> set[str]:
    root = os.path.abspath(index.images_root or ".")
    return {os.path.normpath(os.path.join(root, file)) for file in index.image_files}
