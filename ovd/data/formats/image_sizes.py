"""Heights and widths of images where the annotation file does not state them, or states those of another image.

| record | what is done |
|---|---|
| has no height or no width | both are read from the image's header, in threads; one line in the report |
| its boxes exceed the stated size, and all fit into the image itself | the image's size is used; counted (F12) |
| the same, for at least 5 records and 1 % of all | an error: the boxes may be those of other images |
| states a wrong size otherwise | the image is left out when it is loaded, and counted (F12) |

For this, only the headers of images whose boxes exceed the stated size are read; `ovd check` decodes all images.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ovd.data.formats.image_names import check_images_exist
from ovd.data.formats.table import LARGEST_COORDINATE, AnnotationTable, ReadRequest
from ovd.data.report import SIZES_FROM_IMAGES, DataError, DataReport, are_too_many
from ovd.format_count import format_count
from ovd.shapes import Bool, Int64

TOLERANCE_PX = 1.0
_NUM_NAMED = 3


def fill_sizes(
    sizes: Int64[np.ndarray, "N 2"], files: Sequence[str], request: ReadRequest, report: DataReport
) -> tuple[Int64[np.ndarray, "N 2"], Bool[np.ndarray, " N"] | None]:
    """Read missing sizes, which are 0, from the images; with `sizes_from_images`, all sizes.

    Returns:
        All sizes, and whether each image is available: False if its size cannot be read. None if all are available.

    Raises:
        ImageError: F8, F9, F10 an image cannot be read, and the request is for evaluation.
        DataError: too many images cannot be read.
    """
    is_missing = (sizes == 0).any(axis=1) | request.options.sizes_from_images
    missing = np.flatnonzero(is_missing)
    if not len(missing) or request.images is None:
        return sizes, None
    from ovd.data.images.files import readable_sizes  # imported here, since it needs Pillow

    if report.stops:
        check_images_exist(
            request.annotations,
            files,
            request.images,
            all_needed=False,
            has_option=not request.options.by_base_name,
        )
    paths = [request.images / files[row] for row in missing.tolist()]
    found, found_sizes = readable_sizes(paths, report, stops=request.is_for_evaluation, num_images=len(files))
    if not request.options.sizes_from_images:
        images = f"{format_count(len(missing), 'image')} {'has' if len(missing) == 1 else 'have'}"
        where = f"{request.annotations}: {images} no height and width; they are read from the images"
        report.count_repaired("F12", where)
    filled = sizes.copy()
    filled[missing] = int(LARGEST_COORDINATE) - 1  # images that are left out: no box exceeds this
    filled[missing[found]] = found_sizes
    if request.options.sizes_from_images:
        keep_stored_orientation(filled, sizes, request.images, files)
    is_available = np.ones(len(sizes), dtype=bool)
    is_available[np.delete(missing, found)] = False
    return filled, None if is_available.all() else is_available


def keep_stored_orientation(
    filled: Int64[np.ndarray, "N 2"], stated: Int64[np.ndarray, "N 2"], folder: Path, files: Sequence[str]
) -> None:
    """Restore in `filled` the stated sizes of images that EXIF rotates but that are annotated as stored."""
    turned = np.flatnonzero((filled == stated[:, ::-1]).all(axis=1) & (stated[:, 0] != stated[:, 1]))
    if not len(turned):
        return
    from ovd.data.images.image_file import ImageError  # imported here, since it needs Pillow
    from ovd.data.images.sizes import read_sizes

    expected = [(height, width) for height, width in stated[turned].tolist()]
    sizes = read_sizes([folder / files[image] for image in turned.tolist()], expected=expected)
    for image, size in zip(turned.tolist(), sizes, strict=True):
        if not isinstance(size, ImageError):
            filled[image] = size


def with_real_sizes(table: AnnotationTable, report: DataReport) -> AnnotationTable:
    """Return the table with the real size of each image whose boxes exceed the stated size but fit into the real one.

    Raises:
        DataError: F12 there are at least 5 such images, and 1 % of all.
    """
    if table.image_sizes is None or table.image_files is None or table.images_root is None:
        return table
    leaves = _leaves(table, table.image_sizes)
    suspects = np.flatnonzero(np.bincount(table.image_of_object[leaves], minlength=len(table.image_ids)))
    if not len(suspects):
        return table
    from ovd.data.images.image_file import ImageError  # imported here, since it needs Pillow
    from ovd.data.images.sizes import read_sizes

    paths = [table.images_root / table.image_files[image] for image in suspects.tolist()]
    stated = [(height, width) for height, width in table.image_sizes[suspects].tolist()]
    sizes = table.image_sizes.copy()
    for image, size in zip(suspects.tolist(), read_sizes(paths, expected=stated), strict=True):
        if not isinstance(size, ImageError):
            sizes[image] = size
    still_left = np.bincount(table.image_of_object[_leaves(table, sizes)], minlength=len(table.image_ids)) > 0
    wrong = np.flatnonzero((sizes != table.image_sizes).any(axis=1) & ~still_left)
    if not len(wrong):
        return table
    for image in wrong.tolist():
        report.count_repaired("F12", _described(table, sizes, image))
    if are_too_many(len(wrong), len(sizes)):
        named = "; ".join(_described(table, sizes, image) for image in wrong[:_NUM_NAMED].tolist())
        words = f"in {len(wrong)} images, boxes reach outside the recorded height and width, but fit into the image"
        report.stop(
            DataError(
                "F12",
                f"{table.path}: {words}: {named}. Are height and width swapped? Correct them, or read all sizes from "
                f"the images: {SIZES_FROM_IMAGES}",
            )
        )
    decided = table.image_sizes.copy()
    decided[wrong] = sizes[wrong]
    return replace(table, image_sizes=decided)


def _leaves(table: AnnotationTable, sizes: Int64[np.ndarray, "N 2"]) -> Bool[np.ndarray, " M"]:
    """Return whether each object begins or ends outside its image of these sizes."""
    leaves = np.zeros(len(table.boxes_xywh), bool)
    for side, limit in ((0, sizes[:, 1]), (1, sizes[:, 0])):  # by columns, many times faster than rows of two numbers
        first = table.boxes_xywh[:, side]
        last = first + table.boxes_xywh[:, side + 2]
        leaves |= (first < -TOLERANCE_PX) | (last > limit[table.image_of_object] + TOLERANCE_PX)
    return leaves


def _described(table: AnnotationTable, sizes: Int64[np.ndarray, "N 2"], image: int) -> str:
    assert table.image_files is not None
    assert table.image_sizes is not None
    (stated_height, stated_width), (height, width) = table.image_sizes[image].tolist(), sizes[image].tolist()
    return (
        f"image {table.image_ids[image]}, {Path(table.image_files[image])}: {height} x {width}, "
        f"the record says {stated_height} x {stated_width}"
    )
