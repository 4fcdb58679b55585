"""From the command line of a tool to a data set in any format."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ovd.data.format_options import FormatOptions


def add_format_options(parser: ArgumentParser, *, default_split: str) -> None:
    """Adds the arguments that `format_options` takes.

    Args:
        default_split: for the help; the reader of YOLO takes `val` where a truth is wanted, else `train`.
    """
    parser.add_argument("--split", help=f"yolo: key of data.yaml that lists the images (default: {default_split})")
    parser.add_argument("--class-names", type=Path, help="voc: text file of class names (default: from objects)")
    parser.add_argument("--zero-based", action="store_true", help="voc: corners are box edges that count from 0")


def format_options(arguments: Namespace) -> FormatOptions:
    """The settings that some formats need besides paths."""
    return FormatOptions(split=arguments.split, class_names=arguments.class_names, zero_based=arguments.zero_based)
