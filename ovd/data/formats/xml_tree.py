"""Reading of XML annotation files."""

import codecs
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ovd.data.formats.text_files import read_bytes
from ovd.data.report import DataError


def read_xml(path: Path, largest_bytes: int) -> Element:
    """Read an XML file and return its root element.

    Raises:
        DataError: F1 the file cannot be read, is larger than `largest_bytes`, is not valid XML, or has a DOCTYPE,
            which could define entities that grow without bound or name files.
    """
    content = _in_utf8(path, read_bytes(path, largest_bytes))
    builder = TreeBuilder()
    parser = expat.ParserCreate("utf-8")  # overrides the XML declaration
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise DataError("F1", f"{path}: has a DOCTYPE, which is not allowed; remove it")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        where = f"at byte {max(parser.ErrorByteIndex, 0)} of {len(content)}, line {error.lineno}"
        raise DataError("F1", f"{path}: invalid XML {where}: {expat.ErrorString(error.code)}") from error
    return builder.close()


def _in_utf8(path: Path, content: bytes) -> bytes:
    """Convert the content to UTF-8, since expat reads no multi-byte encodings such as GBK and Shift-JIS."""
    declared = re.match(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)", content)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif declared is None or content.startswith(codecs.BOM_UTF8):
        return content
    else:
        encoding = declared[1].decode()
    try:
        return content.decode(encoding).encode()
    except (LookupError, UnicodeError) as error:
        raise DataError("F1", f"{path}: the content is not in the stated encoding, {encoding} ({error})") from error
