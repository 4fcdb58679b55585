"""Class names, images and label files of a YOLO data set, from data.yaml, Darknet's .data file or classes.txt."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovd.data.formats.moved_paths import MovedPaths
from ovd.data.formats.table import ReadRequest
from ovd.data.formats.text_files import read_lines, read_names, whole_characters
from ovd.data.images.files import find_images
from ovd.data.report import DataError, DataReport
from ovd.plain_yaml import read_mapping

_DESCRIPTIONS = (".yaml", ".yml", ".data")
_USUAL = ("data.yaml", "dataset.yaml", "obj.data")
"""Descriptions that are read beside a list of names; other files of these types may describe something else."""
_NAMES_ALONE = ("classes.txt", "_darknet.labels")
"""Lists of names with label files beside them; the second is Roboflow's."""


@dataclass(frozen=True)
class Listing:
    """Class names by id, and the images with their label files."""

    names: Mapping[int, str]
    root: Path
    """Folder that image names are relative to."""
    images: Sequence[Path]
    labels: Sequence[Path | None]
    """Label file of each image; None if there is none, so that the image has no objects."""
    folders: Sequence[tuple[Path, Path]] = ()
    """Listed image folders, each with its label folder: the path with `labels` in place of `images`, if that exists."""


def list_images(request: ReadRequest, report: DataReport) -> Listing:
    """List the classes, images and label files in data.yaml, a .data file, classes.txt, or a folder with one of these.

    Args:
        report: counts paths of which only a trailing part exists (F8).

    Raises:
        DataError: F1 no plain YAML, a missing key, file or folder, several descriptions in the folder, or two splits
            whose shortened paths lead to the same images.
        ValueError: a split is given for classes.txt, which has none.
    """
    path, split = request.annotations, request.options.split
    if path.is_dir():
        path = _description_in(path)
    if path.name in _NAMES_ALONE:
        if split is not None:
            raise ValueError(f"{path}: a folder of labels has no splits; do not give the split {split!r}")
        return _read_folder(path, request.images)
    return _read_description(path, request.images, split or ("val" if request.is_for_evaluation else "train"), report)


def _description_in(folder: Path) -> Path:
    """Find the one file in a folder that describes its data set."""
    described = [file for file in folder.iterdir() if file.suffix in _DESCRIPTIONS and not file.name.startswith(".")]
    alone = [file for name in _NAMES_ALONE for file in (folder / name, folder / "labels" / name) if file.is_file()]
    found = alone[:1] + [file for file in sorted(described) if not alone or file.name in _USUAL]
    if len(found) != 1:
        files = ", ".join(str(file.relative_to(folder)) for file in found)
        words = f"has {files}; give one of these files instead" if found else "has none of these"
        raise DataError(
            "F1", f"{folder}: the folder must contain classes.txt, or one data.yaml or .data file; it {words}"
        )
    return found[0]


def _read_folder(names: Path, images: Path | None) -> Listing:
    """List label files beside a list of names, or in a folder `labels` that is beside it or contains it."""
    folder = names.parent.parent if names.parent.name == "labels" else names.parent
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    if images is None:
        images = folder / "images" if (folder / "images").is_dir() else folder
    found = find_images(images)
    candidates = [(labels / image.relative_to(images)).with_suffix(".txt") for image in found]
    files = [label if label.is_file() else None for label in candidates]
    if not any(files):
        files = [_label_beside(image) for image in found]
    return Listing(dict(enumerate(read_names(names))), images, found, files)


def _read_description(path: Path, images: Path | None, split: str, report: DataReport) -> Listing:
    content = _darknet(path) if path.suffix == ".data" else _yaml(path)
    start = _text(path, content, "path") if images is None and content.get("path") is not None else ""
    root = path.parent / start if images is None else images
    paths = MovedPaths(path, root, report, start=start)
    if split == "val" and content.get("val") is None and content.get("valid") is not None:
        split = "valid"  # Darknet's name of the split
    sources = _sources(path, content, split)
    others = [
        (key, source)
        for key, value in content.items()
        if isinstance(key, str) and key != split and re.search("train|val|test", key)
        for source in (value if isinstance(value, list) else [value])
        if isinstance(source, str)
    ]
    places = [paths.folder_or_list(source, split, others) for source in sources]
    other_lists = paths.lists(others)
    found = [
        image
        for place in places
        for image in (find_images(place) if place.is_dir() else paths.images(place, other_lists))
    ]
    names = _names(path, content) if path.suffix != ".data" else _darknet_names(path, content, paths)
    root = root if root.is_dir() else path.parent
    label_folders = [(place, _labels_folder(place)) for place in places if place.is_dir()]
    folders = [(place, labels) for place, labels in label_folders if labels != place and labels.is_dir()]
    return Listing(names, root, found, [_label_beside(image) for image in found], folders)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = read_mapping(path)
    except ValueError as error:
        raise DataError("F1", str(error)) from error
    if "annotations" in content and "images" in content:
        raise DataError("F1", f"{path}: looks like COCO JSON (format coco); a data.yaml has names and train or val")
    if "kpt_shape" in content:
        raise DataError("F1", f"{path}: has kpt_shape, so its labels are poses; only boxes and polygons are supported")
    return content


def _darknet(path: Path) -> dict[str, Any]:
    """Read the keys of a .data file, with lines such as `train = data/train.txt`."""
    pairs = [line.partition("=") for _, line in read_lines(path) if not line.startswith("#")]
    content = {key.strip(): value.strip() for key, _, value in pairs}
    if "names" not in content:
        raise DataError("F1", f"{path}: the line `names = FILE` of Darknet's .data files is missing")
    return content


def _darknet_names(path: Path, content: dict[str, Any], paths: MovedPaths) -> dict[int, str]:
    names = read_names(paths.file(content["names"], "names"))
    if content.get("classes", str(len(names))) != str(len(names)):
        raise DataError("F1", f"{path}: classes is {content['classes']}, but names has {len(names)}")
    return dict(enumerate(names))


def _sources(path: Path, content: dict[str, Any], split: str) -> list[str]:
    """Return the paths of the image folders and lists of a split."""
    sources = content.get(split)
    if sources is None:
        splits = [key for key in ("train", "val", "valid", "test") if content.get(key) is not None]
        raise DataError(
            "F1",
            f"{path}: the key {split!r} is missing; the file has {', '.join(splits) or 'none of train, val, test'}",
        )
    sources = sources if isinstance(sources, list) else [sources]
    for source in sources:
        if not isinstance(source, str):
            raise DataError("F1", f"{path}: {split} is {source!r}, not the path of a folder or of a .txt list")
    return sources


def _label_beside(image: Path) -> Path | None:
    """Return the label file of an image: under `labels` in place of the last `images`, else beside the image."""
    beside = image.with_suffix(".txt")
    candidates = (_labels_folder(image.parent) / beside.name, beside)
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), None)


def _labels_folder(images: Path) -> Path:
    """Return the folder with `labels` in place of the last `images` in its path, if there is one."""
    folders = images.parts
    if "images" not in folders:
        return images
    last = len(folders) - 1 - folders[::-1].index("images")
    return Path(*folders[:last], "labels", *folders[last + 1 :])


def _names(path: Path, content: dict[str, Any]) -> dict[int, str]:
    """Return class names by id."""
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError("F1", f"{path}: names is {names!r}, not a list of class names or a mapping of ids to them")
    for class_id, name in names.items():
        if type(class_id) is not int or class_id < 0:
            raise DataError("F1", f"{path}: names has the id {class_id!r}, not a whole number from 0")
        if not isinstance(name, str) or not name.strip():
            raise DataError("F1", f"{path}: name {class_id} is {name!r}, not a string; write it in quotes")
    names = {class_id: whole_characters(name, f"{path}: name {class_id}") for class_id, name in names.items()}
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError("F1", f"{path}: nc is {count!r}, but names has {len(names)}")
    return names


def _text(path: Path, content: dict[str, Any], key: str) -> str:
    if not isinstance(content[key], str):
        raise DataError("F1", f"{path}: {key} is {content[key]!r}, not a string")
    return content[key]
