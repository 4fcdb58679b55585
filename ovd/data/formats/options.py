"""Settings that some annotation formats need besides paths."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SharedOptions:
    """Format settings that all sets of a data set share."""

    class_names: Path | None = None
    """`voc`: a text file with one class name per line; if not given, a set has the classes of its own objects."""
    zero_based: bool = False
    """`voc`: whether corners are box edges counted from 0, instead of inclusive pixels counted from 1."""
    xyxy: bool = False
    """JSON: whether `bbox` is [x1, y1, x2, y2] instead of COCO's [x, y, width, height]."""

    by_base_name: bool = False
    """JSON, `voc`: whether an image is found by the last part of its name in any folder below the image folder; for
    names like "../upload/1/x.jpg", with a suffix in other case, or percent-encoded."""
    sizes_from_images: bool = False
    """JSON, `voc`: whether heights and widths are read from the images, even if the records state them."""


@dataclass(frozen=True)
class FormatOptions(SharedOptions):
    """All format settings of one set. A format refuses settings that it does not support."""

    split: str | None = None
    """`yolo`: the key of data.yaml that lists the images; if not given, `train` for training and `val` for
    evaluation."""
    attribute: str | None = None
    """`via`: the attribute of regions that holds the class name, if they have several."""


NO_OPTIONS = FormatOptions()
