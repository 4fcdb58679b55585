"""Parse the body of a request into a picture file, names and options; any mistake in it is a `Refusal`."""

import asyncio
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from ovd.data.formats.text_files import finite_number
from ovd.format_count import format_count
from ovd.serve.limits import Limits, Refusal
from ovd.text.names import name_key

FIELDS = ("image", "names", "example", "example_name", "threshold", "limit", "overlapping")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False, "": False}


@dataclass(frozen=True)
class DetectForm:
    """The fields of a detection request."""

    image: UploadFile
    names: tuple[str, ...]
    """Names to detect, without duplicates, in the order in which they came."""
    examples: tuple[tuple[str, UploadFile], ...]
    """Example pictures, each with its class name; a name may have several."""
    threshold: float | None
    """Lowest score of a box; None for the detector's own."""
    limit: int
    """Largest number of boxes."""
    overlapping: bool
    """Whether there may be boxes of several names at one place."""

    def close(self) -> None:
        """Close the files."""
        for upload in (self.image, *(upload for _, upload in self.examples)):
            upload.file.close()


async def read_form(request: Request, limits: Limits) -> DetectForm:
    """Read the body of a request.

    Raises:
        Refusal: the body is too large, too slow or not a form, or a field is missing or wrong.
    """
    content_type = request.headers.get("content-type", "").lower()
    if content_type.partition(";")[0].strip() != "multipart/form-data":
        raise Refusal(415, "Send the picture and the names as multipart/form-data.")
    others = re.sub(r'charset\s*=\s*(utf-?8|"utf-?8")\s*(?=;|$)', "", content_type)
    if "charset" in others:  # even as one of several: some of Python's codecs raise, or take long
        raise Refusal(415, "The form must be UTF-8.")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            form = await _limit_body(request, limits).form(
                max_files=1 + limits.examples,
                max_fields=limits.names + limits.examples + len(FIELDS),
                max_part_size=limits.max_text_bytes,
            )
    except TimeoutError:
        raise Refusal(408, f"The request was not complete after {limits.body_seconds:g} seconds.") from None
    except ClientDisconnect:
        raise Refusal(400, "The request ended before its body was complete.") from None
    except (HTTPException, MultiPartException) as error:
        reason = error.detail if isinstance(error, HTTPException) else error.message
        raise Refusal(400, f"The multipart form cannot be read: {reason}") from None
    except UnicodeError:
        raise Refusal(400, "The multipart form contains text that cannot be decoded.") from None
    try:
        return await asyncio.to_thread(parse_form, form, limits)
    except Refusal:
        await form.close()
        raise


def parse_form(form: FormData, limits: Limits) -> DetectForm:
    """Check the fields of a form.

    Raises:
        Refusal: a field is missing, unknown or wrong.
    """
    if unknown := next((key for key in form if key not in FIELDS), None):
        raise Refusal(400, f"Unknown field {unknown[:40]!r}; the fields are {', '.join(FIELDS)}.")
    if sum(len(value.encode()) for _, value in form.multi_items() if isinstance(value, str)) > limits.max_text_bytes:
        raise Refusal(413, f"The texts of the form are larger than {limits.max_text_bytes} bytes.")
    images = form.getlist("image")
    if len(images) != 1 or not isinstance(images[0], UploadFile):
        raise Refusal(400, "Send one picture, as a file, in the field 'image'.")
    threshold = _optional_text(form, "threshold")
    limit = _optional_text(form, "limit")
    overlapping = (_optional_text(form, "overlapping") or "").lower()
    if overlapping not in _BOOLEANS:
        raise Refusal(400, "The field 'overlapping' must be true or false.")
    names = parse_names([_require_text(value, "names") for value in form.getlist("names")], limits)
    examples = _unify_names(names, _examples(form, limits))
    if not names and not examples:
        raise Refusal(400, "Give at least one name to look for, in the field 'names'.")
    return DetectForm(
        images[0],
        names,
        examples,
        None if threshold is None else _parse_threshold(threshold),
        limits.boxes if limit is None else _parse_limit(limit, limits.boxes),
        _BOOLEANS[overlapping],
    )


def parse_names(texts: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """Split texts into names at commas and line ends; of names that differ in spelling only, the first is kept.

    Raises:
        Refusal: there are too many names, or one is too long or has control characters.
    """
    parts = [part for text in texts for part in re.split(r"[,\r\n]", text)]
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter != "\t" for part in parts for letter in part):
        raise Refusal(400, "A name contains a control character.")
    first: dict[str, str] = {}
    for part in parts:
        if reading := name_key(part):
            first.setdefault(reading, " ".join(part.split()))
    names = tuple(first.values())
    if len(names) > limits.names:
        raise Refusal(400, f"There are {len(names)} names; at most {limits.names} are allowed in a request.")
    if longest := next((name for name in names if len(name) > limits.name_length), None):
        raise Refusal(
            400, f"The name that starts with {longest[:20]!r} is longer than {limits.name_length} characters."
        )
    return names


def _examples(form: FormData, limits: Limits) -> tuple[tuple[str, UploadFile], ...]:
    """Return the files of the fields `example`, each with the name in the `example_name` at the same position."""
    pictures = form.getlist("example")
    if len(pictures) > limits.examples:  # if they are texts; the parser refuses more files
        raise Refusal(400, f"There are {len(pictures)} examples; at most {limits.examples} are allowed in a request.")
    example_names = [_require_text(value, "example_name") for value in form.getlist("example_name")]
    if len(example_names) != len(pictures):
        raise Refusal(
            400,
            f"The request has 'example' {format_count(len(pictures), 'time')} and 'example_name' "
            f"{format_count(len(example_names), 'time')}; send one of each for each example.",
        )
    examples = []
    for picture, text in zip(pictures, example_names, strict=True):
        if not isinstance(picture, UploadFile):
            raise Refusal(400, "Send examples as files, in the fields 'example'.")
        names = parse_names([text], limits)
        if len(names) != 1:
            raise Refusal(400, "Each field 'example_name' must have exactly one name.")
        examples.append((names[0], picture))
    return tuple(examples)


def _unify_names(
    names: Sequence[str], examples: Sequence[tuple[str, UploadFile]]
) -> tuple[tuple[str, UploadFile], ...]:
    """Return the examples, each with the spelling of the first name or example that reads like its own."""
    first: dict[str, str] = {}
    for name in (*names, *(name for name, _ in examples)):
        first.setdefault(name_key(name), name)
    return tuple((first[name_key(name)], picture) for name, picture in examples)


def _limit_body(request: Request, limits: Limits) -> Request:
    """Return the same request, refused once its body has more bytes than allowed, whatever length it declares."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limits.max_body_bytes:
            raise _too_large(limits)
        return message

    return Request(request.scope, receive)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The request is larger than {limits.megabytes:g} megabytes.")


def _require_text(value: UploadFile | str, field: str) -> str:
    if isinstance(value, UploadFile):
        raise Refusal(400, f"The field {field!r} must be text, not a file.")
    return value


def _optional_text(form: FormData, field: str) -> str | None:
    """Return the text of a field that occurs at most once; None if it is missing."""
    values = form.getlist(field)
    if len(values) > 1:
        raise Refusal(400, f"The field {field!r} occurs more than once.")
    return _require_text(values[0], field).strip() if values else None


def _parse_threshold(text: str) -> float:
    value = finite_number(text, math.inf)
    if value is None or not 0 <= value <= 1:
        raise Refusal(400, "The field 'threshold' must be a number from 0 to 1.")
    return value


def _parse_limit(text: str, limit: int) -> int:
    value = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= value <= limit:
        raise Refusal(400, f"The field 'limit' must be a whole number from 1 to {limit}.")
    return value
