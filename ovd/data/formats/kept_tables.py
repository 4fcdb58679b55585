"""Tables of large JSON annotation files, kept from one run to the next: to hash a file takes a tenth of reading it.

The folder `OVD_CACHE`, by default ~/.cache/ovd, has a file for each annotation file and what was asked of it. It counts
where the annotation file has the very bytes that it was made of, by their SHA-256, and where the reader is the same.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load, save

from ovd.data.category import Category
from ovd.data.formats.table import AnnotationNames, AnnotationTable, FederatedLabels, ReadRequest
from ovd.files import atomic_write, cache_folder, sha256_of

MIN_BYTES = 2**24
"""Annotation files shorter than this are read every time."""
_SOURCES = ("coco_columns", "coco_records", "kept_tables", "objects365", "table")
_READER = (
    Path(__file__).parents[1] / "category.py",
    *(Path(__file__).with_name(f"{name}.py") for name in _SOURCES),
)
_DIGEST_BYTES = 32
"""A kept file begins with the SHA-256 of all that follows, so that a damaged one is not used."""
_ARRAYS = ("image_ids", "image_of_object", "class_of_object", "boxes_xywh", "is_crowd", "areas_px", "image_sizes")


class _Rest(msgspec.Struct):
    """What a table has besides arrays."""

    categories: tuple[Category, ...]
    image_files: tuple[str, ...] | None
    federated: FederatedLabels | None


def kept_table(request: ReadRequest, *, federated: bool) -> AnnotationTable | None:
    """The table that was kept of the annotation file as it is now; None if there is none, or it is damaged.

    None, too, where images are looked at, whose tables are not kept.
    """
    if request.options.by_base_name or request.options.sizes_from_images:
        return None
    try:
        whole = _file_of(request, federated).read_bytes()
        with ThreadPoolExecutor(1) as beside:  # hashing leaves Python free, and takes as long as all the rest
            annotations_digest = beside.submit(sha256_of, request.annotations)
            content = whole[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() != whole[:_DIGEST_BYTES]:
                return None
            arrays: dict[str, Any] = load(content)
            made_of = arrays.pop("annotations_digest").tobytes().decode()
            names = AnnotationNames(request.annotations, arrays.pop("object_ids"))
            rest = msgspec.json.decode(arrays.pop("rest").tobytes(), type=_Rest)
            if annotations_digest.result() != made_of:
                return None
    except OSError:
        return None
    return AnnotationTable(
        path=request.annotations,
        name_of_object=names,
        images_root=request.images,
        categories=rest.categories,
        image_files=rest.image_files,
        federated=rest.federated,
        **arrays,
    )


def keep_table(table: AnnotationTable, content: bytes, request: ReadRequest, *, federated: bool) -> None:
    """Keep the table of a large file's content; where nothing can be written, the file is read again next time.

    Tables that depend on more than the file are not kept: of images by base name, and of files with faults.
    """
    names = table.name_of_object
    if len(content) < MIN_BYTES or request.options.by_base_name or not isinstance(names, AnnotationNames):
        return
    arrays = {name: getattr(table, name) for name in _ARRAYS if getattr(table, name) is not None}
    file = _file_of(request, federated)
    try:
        rest = msgspec.json.encode(_Rest(table.categories, table.image_files, table.federated))
        arrays |= {
            "annotations_digest": np.frombuffer(hashlib.sha256(content).hexdigest().encode(), np.uint8),
            "object_ids": names.ids,
            "rest": np.frombuffer(rest, np.uint8),
        }
        kept = save(arrays)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, "wb") as stream:
            stream.write(hashlib.sha256(kept).digest())
            stream.write(kept)
    except (OSError, UnicodeEncodeError):
        pass


def _file_of(request: ReadRequest, federated: bool) -> Path:
    """Where the table is kept, by the annotation file's path, by what is asked of it, and by the reader's code."""
    asked = (
        os.path.abspath(request.annotations),
        request.index,
        request.truth,
        request.options.xyxy,
        federated,
        request.file_of.__name__,
    )
    digest = hashlib.sha256(repr(asked).encode(errors="surrogateescape"))
    for source in _READER:
        digest.update(source.read_bytes())
    return cache_folder() / "annotations" / f"{digest.hexdigest()[:32]}.table"
