"""The outputs of `ovd detect`: pictures with boxes, one file of COCO JSON, or JSON lines."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovd.choices import DetectionForm
from ovd.data.coco_annotation import coco_annotation
from ovd.data.images.files import is_image_name
from ovd.data.images.media import is_video
from ovd.files import make_parent_folder, write_json
from ovd.jobs.picture_detections import DetectionOutput, PictureDetections, json_line
from ovd.jobs.picture_files import PictureFiles


def output_for(form: DetectionForm, path: Path | None, sources: Sequence[str], names: Sequence[str]) -> DetectionOutput:
    """Build the output that writes the detections of all sources.

    Args:
        path: for pictures, the folder, or None for that of each source; for coco, the file, or None for
            detections.json; for lines, the file, or None for standard output.

    Raises:
        ValueError: the pictures of two sources would have the same name, the folder has the name of a file, or the file
            cannot be written.
    """
    match form:
        case "pictures":
            if path is not None:
                _check_folder(path)
            return PictureFiles(sources, names, path)
        case "coco":
            return CocoFile(path or Path("detections.json"), names)
        case "lines":
            return JsonLines(path, names)


def _check_folder(path: Path) -> None:
    """Check that the output path of pictures is a folder, or can become one.

    Raises:
        ValueError: the path is a file, or is named like one, as when --write coco was forgotten.
    """
    is_named_as_file = path.suffix.lower() in (".json", ".jsonl") or is_image_name(path.name) or is_video(str(path))
    if not path.is_dir() and (path.exists() or is_named_as_file):
        raise ValueError(
            f"--output {path}: pictures are written into a folder, but this is the name of a file; give a folder, or "
            "write one file with --write coco or --write lines"
        )


def _new_file(path: Path) -> Path:
    """Return the path of a file to write, after making its folder if that does not exist.

    Raises:
        ValueError: the path exists, as a file, folder or device, or its folder cannot be made or written to.
    """
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder; give a file, such as {path / 'detections.json'}")
    if path.exists() and not path.is_file():
        raise ValueError(f"--output {path} is not a file; leave it out to write the lines to standard output")
    if path.exists():
        raise ValueError(f"{path} already exists; delete it, or give another file with --output")
    make_parent_folder(path)
    return path


class CocoFile:
    """Output of one JSON file in COCO's form: images, categories, and annotations with scores."""

    def __init__(self, path: Path, names: Sequence[str]):
        """
        Args:
            path: file to write at the end; its folder is made if it does not exist.

        Raises:
            ValueError: the file exists, or its folder cannot be made or written to.
        """
        self._path = _new_file(path)
        self._names = list(names)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, found: PictureDetections) -> None:
        """Add the boxes of a picture; the record of a frame has the video's name, its position and its time."""
        picture, image_id = found.picture, len(self._images) + 1
        height, width = picture.pixels.shape[:2]
        frame = {} if picture.frame is None else {"frame": picture.frame, "time_s": picture.time_s}
        self._images.append({"id": image_id, "file_name": picture.source, "height": height, "width": width, **frame})
        boxes, classes = found.detections.boxes.tolist(), found.detections.classes.tolist()
        for row, box, class_row in zip(found.rows(self._names), boxes, classes, strict=True):
            track = {"track_id": row["track"]} if "track" in row else {}
            number = len(self._annotations) + 1
            self._annotations.append(coco_annotation(number, image_id, class_row + 1, box, score=row["score"], **track))

    def close(self) -> None:
        """Write the file."""
        categories = [{"id": row + 1, "name": name} for row, name in enumerate(self._names)]
        content = {"images": self._images, "categories": categories, "annotations": self._annotations}
        write_json(self._path, content, indent=None)

    def describe_location(self) -> str:
        """Return the path of the file, as the end of a sentence."""
        return f"; see {self._path}"


class JsonLines:
    """Output of one JSON line per picture, each flushed at once so that another program can read along."""

    def __init__(self, path: Path | None, names: Sequence[str]):
        """
        Args:
            path: file, created with the first picture; None for standard output. Its folder is made if it does not
                exist.

        Raises:
            ValueError: the file exists, or its folder cannot be made or written to.
        """
        self._names = list(names)
        self._path = None if path is None else _new_file(path)
        self._file = sys.stdout if path is None else None

    def add(self, found: PictureDetections) -> None:
        """Write the line of a picture."""
        if self._file is None:
            assert self._path is not None
            self._file = self._path.open("x", encoding="utf-8", errors="backslashreplace")
        self._file.write(json_line(found, self._names))
        self._file.flush()

    def close(self) -> None:
        """Close the file, but not standard output."""
        if self._file is not None and self._file is not sys.stdout:
            self._file.close()

    def describe_location(self) -> str:
        """Return the path of the file, as the end of a sentence; empty for standard output."""
        return "" if self._path is None else f"; see {self._path}"
