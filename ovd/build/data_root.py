"""The root of data sets' relative paths."""

import os
from pathlib import Path

from ovd.data.report import DataError


def data_root() -> Path:
    """Root of data sets' relative paths: OVD_DATA, else DETECTRON2_DATASETS, else ./data."""
    return Path(os.environ.get("OVD_DATA") or os.environ.get("DETECTRON2_DATASETS") or "data")


def in_data_root(path: Path, key: str) -> Path:
    """Where a path of a config's `data.source` is.

    Raises:
        DataError: F1 it is relative, and not below the data root.
    """
    place = data_root() / path
    if not place.exists() and not path.is_absolute():
        advice = f", and is there from the current folder: give {path.absolute()}" if path.exists() else ""
        raise DataError("F1", f"{place} does not exist: {starts_at_root(path, key)}{advice}")
    return place


def starts_at_root(path: Path, key: str) -> str:
    """For messages: that a path of a config's `data.source` is relative, and to what."""
    return f"data.source.{key}={path} starts at the data root, {data_root()} (OVD_DATA)"
