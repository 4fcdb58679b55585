"""Options that several commands share: the format of a data set, a detector and its experts, and checked numbers."""

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ovd.choices import SamePlace
from ovd.data.formats.options import FormatOptions
from ovd.experts.group import ExpertGroup

if TYPE_CHECKING:  # imports torch, which takes seconds
    from ovd.build.trained import TrainedDetector


def add_format_options(parser: ArgumentParser, *, default_split: str) -> None:
    """Add the options that `format_options` reads.

    Args:
        default_split: split named in the help; the YOLO reader takes `val` if it loads ground truth, else `train`.
    """
    parser.add_argument("--split", help=f"yolo: key of data.yaml that lists the images (default: {default_split})")
    parser.add_argument(
        "--class-names", type=Path, help="voc: text file of class names (default: the classes of the objects)"
    )
    parser.add_argument(
        "--xyxy", action="store_true", help="JSON: boxes are [x1, y1, x2, y2], not [x, y, width, height]"
    )
    parser.add_argument(
        "--by-base-name", action="store_true", help="not yolo: find images by base name, in any folder below --images"
    )
    parser.add_argument(
        "--zero-based", action="store_true", help="voc: corners are box edges counted from 0, not pixels counted from 1"
    )
    parser.add_argument(
        "--sizes-from-images",
        action="store_true",
        help="not yolo: read image sizes from the images, not the annotations",
    )


def format_options(arguments: Namespace) -> FormatOptions:
    """Return the settings that some formats need besides paths."""
    given = vars(arguments)
    return FormatOptions(**{field.name: given[field.name] for field in fields(FormatOptions) if field.name in given})


def add_expert_options(parser: ArgumentParser) -> None:
    """Add the options that `expert_group` reads."""
    parser.add_argument(
        "--expert",
        type=Path,
        action="append",
        default=[],
        help="folder of an expert of this detector (from ovd fine-tune), which detects its own names; can be repeated",
    )
    parser.add_argument(
        "--same-place",
        choices=get_args(SamePlace),
        help="if boxes of the detector and of an expert overlap: base_stays (default) drops the expert's box if its "
        "score is lower, surer drops the box with the lower score, both keeps both",
    )
    parser.add_argument(
        "--nearest", action="store_true", help="experts also detect other names that are close to their own"
    )


def add_detector_options(parser: ArgumentParser) -> None:
    """Add the options that `load_requested_detector` reads besides the run: experts, image size and device."""
    add_expert_options(parser)
    parser.add_argument("--size", type=positive_int, help="longest image side in pixels (default: as trained)")
    parser.add_argument("--device", help="for example cpu or cuda:1 (default: as trained)")


def expert_group(arguments: Namespace) -> ExpertGroup:
    """Return the experts to use, and how to combine them with the detector.

    Raises:
        ValueError: --nearest or --same-place is given without --expert.
    """
    if not arguments.expert and (arguments.nearest or arguments.same_place is not None):
        option = "--nearest" if arguments.nearest else "--same-place"
        raise ValueError(f"{option} needs --expert")
    return ExpertGroup(tuple(arguments.expert), arguments.same_place or "base_stays", arguments.nearest)


def load_requested_detector(arguments: Namespace) -> "TrainedDetector":
    """Load the detector that a command line names (`add_detector_options`).

    Raises:
        ValueError: as raised by `load_detector` and `expert_group`, or by `checked_size`, before loading, which takes
            seconds.
    """
    experts = expert_group(arguments)
    from ovd.build.trained import load_detector
    from ovd.data.images.pixels import checked_size

    if arguments.size is not None:
        checked_size(arguments.size)
    return load_detector(arguments.run, arguments.device, experts=experts)


def positive_int(text: str) -> int:
    """Parse an option that is a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def nonnegative_int(text: str) -> int:
    """Parse an option that is a whole number of at least 0."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive_float(text: str) -> float:
    """Parse an option that is a number above 0, whole or not."""
    return _number(text, lambda value: 0 < value < math.inf, "a number above 0")


def nonnegative_float(text: str) -> float:
    """Parse an option that is a number of at least 0, whole or not."""
    return _number(text, lambda value: 0 <= value < math.inf, "a number of at least 0")


def closed_fraction(text: str) -> float:
    """Parse an option that is a score or a share, from 0 to 1."""
    return _number(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def open_fraction(text: str) -> float:
    """Parse an option that is a share above 0 and below 1."""
    return _number(text, lambda value: 0 < value < 1, "a number between 0 and 1")


def _number(text: str, is_wanted: Callable[[float], bool], words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan  # no comparison with it is true
    if not is_wanted(value):
        raise ArgumentTypeError(f"{text!r} is not {words}")
    return value
