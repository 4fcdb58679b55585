"""Verdict on a data set that was read and checked as a whole: what training and evaluation would do with it."""

from collections.abc import Iterator
from dataclasses import dataclass

from ovd.data.formats.image_names import check_images_exist
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataError, DataReport, Unit
from ovd.data.truth import Truth
from ovd.format_count import format_count

_UNITS: tuple[tuple[Unit, str], ...] = (("sample", "images"), ("box", "boxes"))


@dataclass(frozen=True)
class Verdict:
    """Expected outcome of a training or an evaluation on a data set."""

    summary: str
    """Description in one line."""
    stops: bool
    """Whether the training or evaluation would stop with an error."""


def check_trainable(index: AnnotationIndex, report: DataReport, *, needs_boxes: bool = True) -> None:
    """Check that a data set has something to train on.

    Args:
        report: report of reading the data set.
        needs_boxes: whether boxes are required; False if image-text pairs are trained on, too.

    Raises:
        DataError: F1 there is no class, or no box to train on; F2 two classes have the same name.
    """
    if not index.categories:
        raise DataError("F1", f"{index.path}: has no categories, so there is no class to train on")
    first: dict[str, int] = {}
    for category in index.categories:
        if first.setdefault(category.name, category.id) != category.id:
            raise DataError(
                "F2",
                f"{index.path}: categories {first[category.name]} and {category.id} are both called "
                f"{category.name!r}: rename one, or move its boxes to the other and delete it",
            )
    if not len(index.boxes.values) and needs_boxes:
        num_crowds = len(index.crowd_boxes.values)
        hint = "; CVAT exports masks as crowds; ovd import-boxes --crowds-as-objects converts them to objects"
        raise DataError(
            "F1",
            f"{index.path}: none of {format_count(len(index), 'image')} has a box to train on ({num_crowds} are "
            f"crowds, which are not trained on; {report.num_skipped('F4') + report.num_skipped('F5')} were left out as "
            "faulty)"
            f"{hint if num_crowds else ''}",
        )


def training_verdict(index: AnnotationIndex, report: DataReport, num_learned: int, *, has_option: bool) -> Verdict:
    """Return what a training would do with a data set.

    Args:
        report: report of reading the data set and checking its images, which does not stop.
        num_learned: number of boxes, crowds included, that training would use.
        has_option: whether the format can find images by base name, and this is not enabled.
    """
    try:
        check_trainable(index, report)
        # Images in other folders than their names say may be found by base name; the error says so, as before training.
        check_images_exist(index.path, index.image_files, index.images_root, all_needed=False, has_option=has_option)
    except DataError as error:
        return Verdict(f"training: stops, error[{error.code}]: {error}", stops=True)
    if (too_many := report.error or report.too_many(report.num_seen())) is not None:
        return Verdict(f"training: stops, error[{too_many.code}]: {too_many}", stops=True)
    used = ", ".join(_used(report, report.num_used("box") - num_learned))
    return Verdict(f"training: {used}", stops=False)


def check_evaluable(index: AnnotationIndex) -> None:
    """Check that a data set has something to evaluate.

    Raises:
        DataError: F1 there is no class.
    """
    if not index.categories:
        raise DataError("F1", f"{index.path}: has no categories to evaluate; add the list of its classes")


def evaluation_verdict(index: AnnotationIndex, report: DataReport, truth: Truth | DataError) -> Verdict:
    """Return what an evaluation would do with a data set; unlike training, it leaves no image out.

    Args:
        report: as for `training_verdict`.
        truth: ground truth of the data set, or the error found in it.
    """
    error = report.error
    try:
        check_evaluable(index)
    except DataError as of_index:
        error = of_index
    if error is not None:
        return Verdict(f"evaluation: stops, error[{error.code}]: {error}", stops=True)
    num_skipped = report.num_seen() - report.num_used()
    if num_skipped:
        words = f"evaluation: stops, {num_skipped:,} of {format_count(report.num_seen(), 'image')} cannot be used"
        return Verdict(words, stops=True)
    if isinstance(truth, DataError):
        return Verdict(f"evaluation: stops, error[{truth.code}]: {truth}", stops=True)
    without = "" if (~truth.crowd).any() else "; none has a box, so the metrics would be meaningless"
    return Verdict(f"evaluation: uses all of {format_count(report.num_used(), 'image')}{without}", stops=False)


def _used(report: DataReport, num_others: int) -> Iterator[str]:
    """Yield how many images and boxes training would use, and why not all of them.

    Args:
        num_others: number of sound boxes of classes that are not trained on.
    """
    for unit, name in _UNITS:
        seen, used = report.num_seen(unit), report.num_used(unit)
        not_learned = num_others if unit == "box" else 0
        if not_learned:
            unlearned = f"{not_learned:,} belong to classes that are not trained on"
            left_out = f", and {seen - used:,} are left out and counted" if seen > used else ""
            yield f"uses {used - not_learned:,} of {seen:,} {name}; {unlearned}{left_out}"
        elif seen == used:
            yield f"uses all {seen:,} {name}"
        else:
            yield f"uses {used:,} of {seen:,} {name}; the others are left out and counted"
