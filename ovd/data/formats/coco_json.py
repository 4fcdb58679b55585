"""Reader of JSON annotation files: LVIS's form and COCO's, which Objects365 uses too."""

import codecs
import sys

from ovd.data.formats.box_form import check_box_form, check_no_shares, notice_doubles
from ovd.data.formats.kept_tables import keep_table, kept_table
from ovd.data.formats.parents import without_parents
from ovd.data.formats.table import AnnotationTable, ReadRequest
from ovd.data.formats.text_files import read_bytes, refuse_folder
from ovd.data.report import DataReport


def read_coco_json(request: ReadRequest, report: DataReport, *, federated: bool) -> AnnotationTable:
    """Reads and checks a whole annotation file: LVIS v0.5 or v1, COCO, or any file in COCO's form.

    Category ids may have gaps. What a record has to have depends on the request: file names and image sizes, and for
    LVIS synonyms and frequencies, are needed for an index alone, so that a results file can be evaluated without them.

    What has one meaning is read: a byte order mark before the text; ids written as 7.0 or "7"; annotations without ids
    or whose ids restart, which are numbered anew; `iscrowd` as true, false, 1.0, "0" or "1"; numbers of boxes as text;
    polygons without `bbox`, of which the box around all is taken.
    An index has no class that is but the parent of others; a results file may name its id.

    Args:
        request: `images` is the folder under which the images lie. LVIS: the one that holds `train2017/` and
            `val2017/`. COCO: the one that `file_name` is relative to. Objects365: that of the split, with its `patch`
            folders or, v1, the images themselves. None leaves paths relative, for work that needs no pixels.
        report: counts objects and names that are there twice, files whose annotations have no ids of their own, boxes
            with numbers as text or of polygons, and parents.
        federated: whether images have LVIS's federated labels. `iscrowd` does not count in the evaluation then.

    Raises:
        DataError: F1 a folder, not whole JSON, or a record without a required field; F2 an id of an image or a category
            twice; F3 unknown images or categories; F5 boxes of another form; F6 a box that is not four finite numbers
            or not in pixels, or an area that is none; F7 LVIS without its federated labels, or with a field that its
            evaluators disagree on.
    """
    refuse_folder(request.annotations, "a JSON file", ".json")
    table = kept_table(request, federated=federated)
    if table is None:
        content = read_bytes(request.annotations, sys.maxsize)
        table = _read_whole(request, content, report, federated=federated)
    without = without_parents(table, report)
    if request.options.xyxy:
        check_no_shares(without)
    else:
        check_box_form(without)
    notice_doubles(without, report)
    return without if request.index else table


def _read_whole(request: ReadRequest, content: bytes, report: DataReport, *, federated: bool) -> AnnotationTable:
    from ovd.data.formats.coco_columns import read_columns  # both here, since a kept table needs neither
    from ovd.data.formats.coco_records import read_records

    text = content.removeprefix(codecs.BOM_UTF8)
    # read_records fills sizes in.
    table = None if request.options.sizes_from_images else read_columns(request, text, federated=federated)
    if table is None:
        return read_records(request, text, report, federated=federated)
    keep_table(table, content, request, federated=federated)
    return table
