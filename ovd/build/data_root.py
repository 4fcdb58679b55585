"""The data root, at which relative paths of data sets start."""

import os
from pathlib import Path

from ovd.data.report import DataError


def data_root() -> Path:
    """Return the root of data sets' relative paths: OVD_DATA, else DETECTRON2_DATASETS, else ./data."""
    return Path(os.environ.get("OVD_DATA") or os.environ.get("DETECTRON2_DATASETS") or "data")


def in_data_root(path: Path, key: str) -> Path:
    """Resolve a path of a config's `data.source` against the data root.

    Raises:
        DataError: F1 the path is relative and does not exist below the data root.
    """
    place = data_root() / path
    if not place.exists() and not path.is_absolute():
        advice = f"; it exists in the current folder, so write {_from_data_root(path)}" if path.exists() else ""
        raise DataError("F1", f"{place} does not exist: {starts_at_root(path, key)}{advice}")
    return place


def _from_data_root(path: Path) -> Path:
    """Return the path relative to the data root if it is below it, else the absolute path."""
    place, root = path.absolute(), data_root().absolute()
    return place.relative_to(root) if place.is_relative_to(root) else place


def starts_at_root(path: Path, key: str) -> str:
    """Return the part of an error message that says where a relative path of `data.source` starts."""
    return f"data.source.{key}={path} is relative to the data root, {data_root()} (OVD_DATA)"
