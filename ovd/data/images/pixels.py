"""Conversion of images in memory to RGB pixels, by unambiguous rules.

| given | read as |
|---|---|
| `PIL.Image` of any mode | its pixels without EXIF rotation; transparent ones over white |
| array (H W), (H W 1) | gray |
| array (H W 3), (H W 4) | RGB; RGBA over white. OpenCV's order, BGR, cannot be recognized: convert it first |
| array (1 H W), (3 H W), (4 H W) | the same, channels first; an ambiguous tensor is read as channels first |
| integers | 0 to 255 |
| uint16 with a value above 255 | the highest eight of the bits that are used: 10, 12, 14 or 16 |
| floats, all from 0 to 1 | 1 is white |
| floats, all from 0 to 255 | 255 is white |

Everything else is an error: no pixels, several images, negative values, values above the range, NaN, booleans.
"""

from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ovd.data.images.read import read_image, to_rgb
from ovd.data.images.sixteen_bits import to_eight_bits
from ovd.shapes import UInt8
from ovd.warn import warn


@runtime_checkable
class TensorLike(Protocol):
    """A tensor of torch, for which torch need not be installed."""

    def detach(self) -> Any: ...

    def cpu(self) -> Any: ...


SMALLEST_SIDE_PX = 32
"""Minimum length of the longest side of an image that a detector is run on."""

ImageInMemory = Image.Image | np.ndarray | TensorLike
AnyImage = str | PathLike[str] | ImageInMemory
"""An image file or an image in memory."""


def pixels_of(image: AnyImage) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of a file, or of an image in memory.

    Raises:
        ImageError: the file is missing or not an image.
        ValueError: as for `as_pixels`.
    """
    return read_image(Path(image)) if isinstance(image, str | PathLike) else as_pixels(image)


def as_pixels(image: ImageInMemory) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of an image in memory, by the rules of this module.

    Raises:
        ValueError: the rules do not allow the image; the message says why.
    """
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"the image has no pixels: {image.size[0]} x {image.size[1]}")
        if image.mode not in ("I", "F"):  # of 32 bits, which Pillow would cut at 255
            return np.array(to_rgb(image))
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        values = _channels_last(image, prefer_first=False)
    elif isinstance(image, TensorLike):
        values = _channels_last(_array(image), prefer_first=True)
    else:
        raise ValueError(
            f"a {type(image).__name__} is not an image; give a path, a PIL image, an array or a tensor (for bytes: "
            "PIL.Image.open(io.BytesIO(...)))"
        )
    values = _eight_bits(values)
    if values.shape[2] == 3:
        return np.ascontiguousarray(values)
    return np.array(to_rgb(Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)))


def _array(image: TensorLike) -> np.ndarray:
    """Return the tensor as an array; bfloat16, which NumPy lacks, as float32."""
    tensor = image.detach().cpu()
    return tensor.float().numpy() if "bfloat16" in str(tensor.dtype) else tensor.numpy()


def _channels_last(values: np.ndarray, *, prefer_first: bool) -> np.ndarray:
    """Return the values as (H W C), where C is 1, 3 or 4."""
    shape = values.shape
    if 0 in shape:
        raise ValueError(f"the image has no pixels: its shape is {shape}")
    if len(shape) == 2:
        return values[..., None]
    if len(shape) != 3:
        raise ValueError(
            f"an image has two or three dimensions; the shape of this one is {shape}; give one image at a time"
        )
    is_first, is_last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    if not is_first and not is_last:
        raise ValueError(f"an image has 1, 3 or 4 channels, first or last; the shape of this one is {shape}")
    return values.transpose(1, 2, 0) if is_first and (prefer_first or not is_last) else values


def _eight_bits(values: np.ndarray) -> UInt8[np.ndarray, "*shape"]:
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.integer) and not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"values of type {values.dtype} are not pixels; give integers or floats")
    lowest, highest = float(values.min()), float(values.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError("the image has values that are not finite")
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and highest > 255:
        return to_eight_bits(values.astype(np.uint16))  # in the machine's byte order
    if lowest < 0 or highest > 255:
        raise ValueError(
            f"the image has values from {lowest:g} to {highest:g}; allowed are 0 to 1 (floats), 0 to 255, or the "
            "type uint16. Undo the normalization of a normalized image first"
        )
    if np.issubdtype(values.dtype, np.floating):
        if 1 < highest <= 2:
            raise ValueError(
                f"the image has floats up to {highest:g}: too large for 0 to 1, and almost black for 0 to 255; if "
                "the values are meant to be from 0 to 1, clip them"
            )
        values = np.rint(values.astype(np.float64) * (255 if highest <= 1 else 1))
    return values.astype(np.uint8)


def checked_size(size: int) -> int:
    """Check and return the longest side in pixels that images are resized to.

    Raises:
        ValueError: the size is not a whole number, or under `SMALLEST_SIDE_PX`.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < SMALLEST_SIDE_PX:
        raise ValueError(
            f"size is {size!r}; it must be the longest side in pixels, a whole number of at least {SMALLEST_SIDE_PX}"
        )
    return size


def warn_of_other_size(calibrated: int, size: int) -> None:
    """Warn if scores were calibrated at another image size than the one in use."""
    if size != calibrated:
        warn(f"scores were calibrated at {calibrated} px; at {size} px they are less accurate as probabilities")
