"""Videos: their frames as RGB pixels, and pictures as a video. PyAV does the work (extra `video`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovd.data.images import MAX_PIXELS, ImageError
from ovd.extras import optional
from ovd.shapes import UInt8

VIDEO_ENDINGS = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv"})
_DEFAULT_RATE = Fraction(25)
LEAST_SHARE = 0.9
"""Of a video's length by its header, that its frames reach at least, but for a second."""


def read_frames(path: Path) -> Iterator[tuple[float, UInt8[np.ndarray, "H W 3"]]]:
    """Seconds from the start and the RGB pixels of every frame, turned as a player shows it.

    Raises:
        ImageError: F8 missing; F9 no video, damaged, or a second and a tenth of its length short, which is found after
            its last frame; F10 too many pixels.
        ValueError: PyAV is missing.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if stream.width * stream.height > MAX_PIXELS:
            raise ImageError("F10", f"{path}: {stream.height} x {stream.width} pixels are more than {MAX_PIXELS}")
        time_s = 0.0
        for frame in container.decode(stream):
            pixels = frame.to_ndarray(format="rgb24")
            quarter_turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
            time_s = float(frame.time or 0.0)
            yield time_s, np.ascontiguousarray(np.rot90(pixels, quarter_turns))
        length_s = _length_s(container, stream)
        if time_s < LEAST_SHARE * length_s - 1:
            raise ImageError(
                "F9", f"{path}: its frames end after {time_s:.1f} of {length_s:.1f} s; the rest is missing or damaged"
            )


def describe_video(path: Path) -> tuple[Fraction, int]:
    """Frames per second, and the number of frames by the file's header, 0 if it does not say.

    Raises:
        ImageError, ValueError: as `read_frames`.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or _DEFAULT_RATE)
        length_s = container.duration / optional("av", "video").time_base if container.duration else 0
        return rate, stream.frames or round(length_s * rate)


def _length_s(container: Any, stream: Any) -> float:
    """Seconds of a video by its header; 0 if that says nothing of its pictures alone."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    is_alone = container.duration and not container.streams.audio
    return float(container.duration / optional("av", "video").time_base) if is_alone else 0.0


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """PyAV's container of a file that has pictures; what PyAV raises until the block ends becomes an ImageError."""
    av = optional("av", "video")
    if not path.is_file():
        raise ImageError("F8", f"{path}: file is missing")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ImageError("F9", f"{path}: has no pictures")
            yield container
    except av.FFmpegError as error:
        raise ImageError("F9", f"{path}: cannot be read as a video: {error}") from error


class VideoWriter:
    """Writes pictures of one size as an MP4 file (H.264, or MPEG-4 where PyAV is built without an encoder for it)."""

    def __init__(self, path: Path, rate: Fraction):
        """
        Args:
            path: replaced if it exists.
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
        """Append a picture; each has the size of the first, an odd side of which loses a pixel."""
        if self._size is None:
            self._size = (picture.width - picture.width % 2, picture.height - picture.height % 2)
            self._stream.width, self._stream.height = self._size
        frame = self._av.VideoFrame.from_image(picture.crop((0, 0, *self._size)))
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._size is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
