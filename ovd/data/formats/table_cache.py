"""Cache of the tables of large JSON annotation files: hashing a file takes a tenth of the time of reading it.

The folder `OVD_CACHE`, by default ~/.cache/ovd, has a cache file per annotation file and kind of request. It is used
only if the annotation file still has the SHA-256 that the table was made from, and the reader's code is unchanged.
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
"""Size below which annotation files are not cached."""
_SOURCES = ("coco_columns", "coco_records", "table_cache", "objects365", "table")
_READER = (
    Path(__file__).parents[1] / "category.py",
    *(Path(__file__).with_name(f"{name}.py") for name in _SOURCES),
)
_DIGEST_BYTES = 32
"""Length of the SHA-256 at the start of a cache file, which covers the rest, so that a damaged file is not used."""
_ARRAYS = ("image_ids", "image_of_object", "class_of_object", "boxes_xywh", "is_crowd", "areas_px", "image_sizes")


class _NonArrayFields(msgspec.Struct):
    """The fields of a table that are not arrays."""

    categories: tuple[Category, ...]
    image_files: tuple[str, ...] | None
    federated: FederatedLabels | None


def load_cached_table(request: ReadRequest, *, federated: bool) -> AnnotationTable | None:
    """Load the cached table of an annotation file; None if there is none, it is damaged, or the file has changed.

    Requests with `by_base_name` or `sizes_from_images` are never cached, since they depend on the images.
    """
    if request.options.by_base_name or request.options.sizes_from_images:
        return None
    try:
        whole = _cache_file(request, federated).read_bytes()
        with ThreadPoolExecutor(1) as beside:  # hashing releases the GIL, and takes as long as all the rest
            annotations_digest = beside.submit(sha256_of, request.annotations)
            content = whole[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() != whole[:_DIGEST_BYTES]:
                return None
            arrays: dict[str, Any] = load(content)
            made_of = arrays.pop("annotations_digest").tobytes().decode()
            names = AnnotationNames(request.annotations, arrays.pop("object_ids"))
            rest = msgspec.json.decode(arrays.pop("rest").tobytes(), type=_NonArrayFields)
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


def cache_table(table: AnnotationTable, content: bytes, request: ReadRequest, *, federated: bool) -> None:
    """Cache the table of a large file; if the cache cannot be written, the file is read again next time.

    Tables that depend on more than the file are not cached: with images by base name, and of files with faults.
    """
    names = table.name_of_object
    if len(content) < MIN_BYTES or request.options.by_base_name or not isinstance(names, AnnotationNames):
        return
    arrays = {name: getattr(table, name) for name in _ARRAYS if getattr(table, name) is not None}
    file = _cache_file(request, federated)
    try:
        rest = msgspec.json.encode(_NonArrayFields(table.categories, table.image_files, table.federated))
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


def _cache_file(request: ReadRequest, federated: bool) -> Path:
    """Return the cache file for an annotation file's path, the kind of request, and the reader's code."""
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
