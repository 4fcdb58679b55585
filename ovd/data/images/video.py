"""Reading of videos as RGB frames, and writing of pictures as a video, with PyAV (extra `video`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovd.data.images.image_file import MAX_PIXELS, ImageError
from ovd.extras import optional
from ovd.shapes import UInt8

VIDEO_ENDINGS = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv"})
_DEFAULT_RATE = Fraction(25)
MIN_SHARE = 0.9
"""Share of the length in a video's header, less a second, that the frames of a complete video cover."""


def read_frames(path: Path) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
    """Yield the time in seconds from the start and the RGB pixels of every frame, rotated as a player shows it.

    Raises:
        ImageError: F8 missing; F9 not a video, damaged, or with frames for less than nine tenths of its length, which
            is found after the last frame; F10 too many pixels.
        ValueError: PyAV is missing.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if stream.width * stream.height > MAX_PIXELS:
            raise ImageError(
                "F10", f"{path}: a frame has {stream.height} x {stream.width} pixels, more than {MAX_PIXELS}"
            )
        time_s = end_s = longest_s = 0.0
        for frame in container.decode(stream):
            pixels = frame.to_ndarray(format="rgb24")
            quarter_turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
            before_s, time_s = time_s, float(frame.time or 0.0)
            own_s = float((getattr(frame, "duration", 0) or 0) * (frame.time_base or 0))
            longest_s = max(longest_s, own_s, time_s - before_s)
            end_s = time_s + longest_s  # the last frame may last as long as any
            yield time_s, np.ascontiguousarray(np.rot90(pixels, quarter_turns))
        length_s = _length_s(container, stream)
        if 0 < end_s < MIN_SHARE * length_s - 1:
            raise ImageError(
                "F9", f"{path}: the frames end after {end_s:.1f} of {length_s:.1f} s; the rest is missing or damaged"
            )


def describe_video(path: Path) -> tuple[Fraction, int]:
    """Return frames per second, and the number of frames in the file's header, 0 if it is not stated.

    Raises:
        ImageError, ValueError: as for `read_frames`.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or _DEFAULT_RATE)
        length_s = container.duration / optional("av", "video").time_base if container.duration else 0
        return rate, stream.frames or round(length_s * rate)


def _length_s(container: Any, stream: Any) -> float:
    """Return the length of a video's pictures in seconds by its header; 0 if it is not stated."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    is_alone = container.duration and not container.streams.audio
    return float(container.duration / optional("av", "video").time_base) if is_alone else 0.0


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file that has pictures with PyAV; whatever PyAV raises within the context becomes an `ImageError`."""
    av = optional("av", "video")
    if not path.is_file():
        raise ImageError("F8", f"{path}: file is missing")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ImageError("F9", f"{path}: the video has no frames")
            yield container
    except av.FFmpegError as error:
        raise ImageError("F9", f"{path}: cannot be read as a video: {error}") from error


class VideoWriter:
    """A writer of pictures of one size as an MP4 file (H.264, or MPEG-4 if PyAV is built without an encoder for it)."""

    def __init__(self, path: Path, rate: Fraction):
        """
        Args:
            path: the file, which is replaced if it exists.
            rate: frames per second.

        Raises:
            ValueError: PyAV is missing.
        """
        self._av = optional("av", "video")
        self._container: Any = self._av.open(str(path), "w", format="mp4")
        codec = "libx264" if "libx264" in self._av.codec.codecs_available else "mpeg4"
        self._stream = self._container.add_stream(codec, rate=rate.limit_denominator(60_000))
        self._stream.pix_fmt = "yuv420p"
        self._size: tuple[int, int] | None = None

    def add(self, picture: Image.Image) -> None:
        """Append a picture, which must have the size of the first; an odd side loses a pixel."""
        if self._size is None:
            self._size = (picture.width - picture.width % 2, picture.height - picture.height % 2)
            self._stream.width, self._stream.height = self._size
        frame = self._av.VideoFrame.from_image(picture.crop((0, 0, *self._size)))
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write the remaining frames and close the file."""
        if self._size is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
