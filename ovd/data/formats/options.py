"""Settings that some formats of annotations need besides paths."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SharedOptions:
    """Such settings that are the same for all sets of a data set."""

    class_names: Path | None = None
    """`voc`: a text file with one class name per line; if not given, a set has the classes of its own objects."""
    zero_based: bool = False
    """`voc`: corners are box edges that count from 0 instead of inclusive pixels that count from 1."""
    xyxy: bool = False
    """JSON: `bbox` is [x1, y1, x2, y2] instead of COCO's [x, y, width, height]."""

    by_base_name: bool = False
    """JSON, `voc`: an image is the file below the folder of images with the last part of its name, in whatever folder;
    for names like "../upload/1/x.jpg", with a suffix in other case, or percent-encoded."""
    sizes_from_images: bool = False
    """JSON, `voc`: heights and widths are those of the images themselves, whatever the records say."""


@dataclass(frozen=True)
class FormatOptions(SharedOptions):
    """All such settings of one set. A format refuses those it does not have."""

    split: str | None = None
    """`yolo`: the key of data.yaml that lists the images; if not given, `train` for training and `val` for
    evaluation."""
    attribute: str | None = None
    """`via`: the attribute of regions that names them, where they have several."""


NO_OPTIONS = FormatOptions()
