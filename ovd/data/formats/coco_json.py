"""Reader of JSON annotation files in the formats of LVIS and COCO; Objects365 uses the latter."""

import codecs
import sys

from ovd.data.formats.box_form import check_box_form, check_no_shares, notice_doubles
from ovd.data.formats.parents import without_parents
from ovd.data.formats.table import AnnotationTable, ReadRequest
from ovd.data.formats.table_cache import cache_table, load_cached_table
from ovd.data.formats.text_files import read_bytes, refuse_folder
from ovd.data.report import DataReport


def read_coco_json(request: ReadRequest, report: DataReport, *, federated: bool) -> AnnotationTable:
    """Read and check an annotation file: LVIS v0.5 or v1, COCO, or any file in COCO's format.

    Category ids may have gaps. Required fields depend on the request: file names and image sizes, and for LVIS synonyms
    and frequencies, are required for an index only, so that a results file can be evaluated without them.

    Unambiguous deviations are accepted: a byte order mark before the text; ids written as 7.0 or "7"; missing or
    repeated annotation ids, which are renumbered; `iscrowd` as true, false, 1.0, "0" or "1"; box coordinates as text;
    polygons without `bbox`, which get the box around all of them.
    Classes that are only the parent of others are left out of an index, unless the request keeps them, as the
    evaluation of a results file does, which may contain their ids.

    Args:
        request: `images` is the image folder. LVIS: the folder that contains `train2017/` and `val2017/`. COCO: the
            folder that `file_name` is relative to. Objects365: the folder of the split, with its `patch` folders or,
            in v1, the images themselves. None leaves paths relative, for work that needs no pixels.
        report: counts duplicate objects and names, files whose annotations have no unique ids, boxes written as text or
            made of polygons, and parent classes.
        federated: whether images have LVIS's federated labels; `iscrowd` is then ignored in evaluation.

    Raises:
        DataError: F1 a folder, invalid JSON, or a record without a required field; F2 a duplicate id of an image or
            a category; F3 unknown images or categories; F5 boxes of another form; F6 a box that is not four finite
            numbers or not in pixels, or an area that is not a number; F7 LVIS without its federated labels, or with a
            field that its evaluators disagree on.
    """
    refuse_folder(request.annotations, "a JSON file", ".json")
    table = load_cached_table(request, federated=federated)
    if table is None:
        content = read_bytes(request.annotations, sys.maxsize)
        table = _read_whole(request, content, report, federated=federated)
    without = without_parents(table, report)
    if request.options.xyxy:
        check_no_shares(without)
    else:
        check_box_form(without)
    notice_doubles(without, report)
    return without if request.index and not request.keeps_parents else table


def _read_whole(request: ReadRequest, content: bytes, report: DataReport, *, federated: bool) -> AnnotationTable:
    from ovd.data.formats.coco_columns import read_columns  # imported here, since a cached table needs neither
    from ovd.data.formats.coco_records import read_records

    text = content.removeprefix(codecs.BOM_UTF8)
    # Only read_records reads sizes from images.
    table = None if request.options.sizes_from_images else read_columns(request, text, federated=federated)
    if table is None:
        return read_records(request, text, report, federated=federated)
    cache_table(table, content, request, federated=federated)
    return table
