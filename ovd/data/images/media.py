"""Pictures from the inputs of a user: image files, folders, patterns, standard input, and the frames of videos."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np

from ovd.data.images.files import READ_SUFFIXES, filter_by_name, find_files, is_image_name
from ovd.data.images.image_file import MAX_BYTES, ImageError
from ovd.data.images.read import read_image
from ovd.data.images.video import VIDEO_ENDINGS, read_frames
from ovd.shapes import UInt8

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Picture:
    """An image, or a frame of a video."""

    source: str
    """File as it was given, or found in a given folder or pattern; "-" for standard input."""
    pixels: UInt8[np.ndarray, "H W 3"]
    """RGB pixels."""
    frame: int | None = None
    """Position in the video, from 0; None for an image."""
    time_s: float | None = None
    """Seconds from the start of the video; None for an image."""


def find_media(given: Sequence[str]) -> list[str]:
    """Find the image and video files of the given inputs, each once, in the order of the inputs.

    Args:
        given: files; folders, for the images and videos in them and their subfolders, sorted by path; patterns such as
            `photos/*.jpg`, with `**` for any folders; `-` for an image on standard input. The files of folders and
            patterns are filtered by `exclude_drawn`.

    Raises:
        ValueError: a folder or a pattern has no image and no video, an input is an address such as https://..., or `-`
            is given twice.
    """
    found: dict[str, str] = {}
    for word in given:
        for file in [word] if word == STANDARD_INPUT else _files_of(word):
            found.setdefault(file if file == STANDARD_INPUT else os.path.abspath(file), file)
    if list(given).count(STANDARD_INPUT) > 1:
        raise ValueError("standard input (-) can be given only once")
    return list(found.values())


def _files_of(word: str) -> list[str]:
    path = Path(word)
    if "://" in word and not path.exists():
        piped = f", or pipe a picture: curl -sL '{word}' | ovd detect -" if word.lower().startswith("http") else ""
        raise ValueError(f"{word}: URLs are not supported; download the file and give its path{piped}")
    if path.is_dir():
        files = filter_by_name(find_files(path, _is_medium), _is_medium)
    elif path.exists() or not any(character in word for character in "*?["):
        return [word]  # reading it reports what is wrong with it
    else:
        files = filter_by_name(map(Path, glob(word, recursive=True)), _is_medium)
    if not files:
        endings = ", ".join([*READ_SUFFIXES, *sorted(VIDEO_ENDINGS)])
        raise ValueError(f"{word}: no image or video found; their names end in {endings}")
    return [str(file) for file in files]


def _is_medium(name: str) -> bool:
    return is_image_name(name) or is_video(name)


def is_video(source: str) -> bool:
    """Whether a file is read as a video, by its suffix."""
    return Path(source).suffix.lower() in VIDEO_ENDINGS


def pictures_of(source: str) -> Iterator[Picture]:
    """Yield the image of a file or of standard input, or every frame of a video.

    Raises:
        ImageError: the image or video cannot be read.
        ValueError: the package that reads videos is missing.
    """
    if is_video(source):
        for number, (time_s, pixels) in enumerate(read_frames(Path(source))):
            yield Picture(source, pixels, number, time_s)
        return
    if source != STANDARD_INPUT:
        yield Picture(source, read_image(Path(source)))
        return
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ImageError("F10", f"standard input: more than {MAX_BYTES} bytes")
    try:
        yield Picture(source, read_image(content))
    except ImageError as error:
        raise ImageError(error.code, f"standard input: {error}") from error
