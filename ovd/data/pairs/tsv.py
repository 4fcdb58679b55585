"""Reader of image-text pairs in TSV files: one pair per line, with a path or the image in base64."""

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovd.data.images.image_file import ImageError, read_file
from ovd.data.images.read import decode_image
from ovd.data.pairs.pair import Pair, caption_fault
from ovd.data.report import DataReport
from ovd.format_count import format_count
from ovd.progress import progress

COLUMNS = ("key", "caption", "path", "base64", "_")


def read_tsv(path: Path, columns: Sequence[str], images: Path | None, report: DataReport) -> Iterator[Pair]:
    """Yield the usable pairs, keyed by line number; `report` counts the others, and stops at too many.

    A pair is usable if its caption is sound and its image can be decoded.

    Args:
        path: UTF-8 file with or without a byte order mark, one pair per line, without a header.
        columns: meaning of each column: `caption`, either `path` or `base64`, `key` for a value that is stored in the
            pair's JSON under that name, `_` for an ignored column.
        images: folder that paths are relative to.

    Raises:
        ValueError: the columns do not give one caption and one image, or the file has no line.
        DataError: too many pairs were left out.
    """
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise ValueError(f"unknown columns {', '.join(map(repr, sorted(unknown)))}; allowed are {', '.join(COLUMNS)}")
    if columns.count("caption") != 1 or columns.count("path") + columns.count("base64") != 1:
        raise ValueError(f"columns {','.join(columns)}: give one column caption, and one of path and base64")
    with path.open("rb") as file:
        num_lines = sum(1 for _ in file)
    if num_lines == 0:
        raise ValueError(f"{path} has no lines to import")
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for number, line in enumerate(progress(file, num_lines, "reading TSV"), start=1):
            where = f"{path}: line {number}"
            values = line.rstrip("\r\n").split("\t")
            fields = dict(zip(columns, values, strict=False))
            try:
                if len(values) > len(columns):
                    raise ImageError(
                        "F30", f"{format_count(len(values), 'field')}, but the columns are {','.join(columns)}"
                    )
                pair = _pair(f"{number:09d}", fields, images, where)
            except ImageError as error:
                report.count_skipped(error.code, f"{where}: {error}")
                report.raise_if_too_many(num_lines)
                continue
            report.count_used()
            yield pair


def _pair(key: str, fields: dict[str, str], images: Path | None, where: str) -> Pair:
    if (fault := caption_fault(fields.get("caption", ""))) is not None:
        raise ImageError(*fault)
    if "base64" in fields:
        try:
            image = base64.b64decode(fields["base64"], validate=True)
        except ValueError as error:  # binascii.Error, or characters that are not ASCII
            raise ImageError("F9", f"not base64: {error}") from None
    else:
        if "path" not in fields:
            raise ImageError("F8", "no image")
        file = Path(fields["path"])
        if images is not None:
            if file.is_absolute() or ".." in file.parts:
                raise ImageError("F15", f"{file} is outside {images}")
            file = images / file
        image = read_file(file)
    decode_image(image)
    info = {"source": where} | ({"key": fields["key"]} if "key" in fields else {})
    return Pair(key=key, image=image, caption=fields["caption"].strip(), info=info)
