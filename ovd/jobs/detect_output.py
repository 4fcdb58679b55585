"""What `ovd detect` writes of the pictures that it looked at: pictures, COCO JSON, or lines of JSON."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image

from ovd.choices import DetectionForm
from ovd.data.coco_annotation import coco_annotation
from ovd.data.images.files import DRAWN, is_image_name, name_below
from ovd.data.images.media import STANDARD_INPUT, Picture, is_video
from ovd.data.images.video import VideoWriter, describe_video
from ovd.files import make_folder, make_folder_of, write_json
from ovd.structures import Detections
from ovd.visualize.boxes import draw_detections

PICTURE: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}
"""How pictures are saved. As PNG those of a phone (12 million pixels) take a hundred times as long."""


@dataclass(frozen=True)
class Found:
    """What is shown of one picture."""

    picture: Picture
    detections: Detections
    tracks: tuple[int, ...] | None = None
    """Number of the object that each box follows through the video; None if objects are not tracked."""

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """One JSON-able row per box, best first."""
        found = self.detections
        boxes, scores, classes = found.boxes.tolist(), found.scores.tolist(), found.classes.tolist()
        rows: list[dict[str, Any]] = [
            {"class": names[row], "score": round(score, 4), "box_xyxy": [round(value, 1) for value in box]}
            for box, score, row in zip(boxes, scores, classes, strict=True)
        ]
        if self.tracks is not None:
            rows = [{**row, "track": track} for row, track in zip(rows, self.tracks, strict=True)]
        return rows


@runtime_checkable
class Output(Protocol):
    """Where detections go."""

    def add(self, found: Found) -> None:
        """Takes those of one picture; the frames of a video come in their order, without others between them."""

    def close(self) -> None:
        """Writes what is left, after the last picture."""

    def where(self) -> str:
        """Where it all is now, to end a sentence with; empty for standard output."""


def output_for(form: DetectionForm, path: Path | None, sources: Sequence[str], names: Sequence[str]) -> Output:
    """What writes the detections of sources.

    Args:
        path: pictures: folder, None for that of each source; coco: file, None for detections.json; lines: file, None
            for standard output.

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
    """Check that pictures go into a folder.

    Raises:
        ValueError: it is a file, or would be a folder with the name of one, as where --write coco was forgotten.
    """
    is_named_as_file = path.suffix.lower() in (".json", ".jsonl") or is_image_name(path.name) or is_video(str(path))
    if not path.is_dir() and (path.exists() or is_named_as_file):
        raise ValueError(
            f"--output {path}: pictures are written into a folder, and this is the name of a file; name a folder, or "
            "add --write coco or --write lines for one file"
        )


def _check_places(folders: Iterable[Path]) -> None:
    """Check that pictures can be written beside their sources.

    Raises:
        ValueError: a folder cannot be written to.
    """
    for folder in sorted(folders):
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise ValueError(
                f"{folder} cannot be written to, and pictures go beside their sources; give --output FOLDER"
            )


class PictureFiles:
    """Writes, beside each source or into a folder, a picture with the boxes and a JSON file; of a video, a video and
    lines of JSON."""

    def __init__(self, sources: Sequence[str], names: Sequence[str], folder: Path | None):
        """
        Args:
            folder: made if it does not exist; None writes beside the sources. Where two sources have the same name,
                it has the folders below the one that all sources lie in.

        Raises:
            ValueError: the files of two sources would have the same name; the folder cannot be made or written to, nor,
                without one, that of a source.
        """
        self._names = list(names)
        self._folder = folder
        self._targets = targets(sources, folder)
        if folder is None:
            _check_places({target.parent for target in self._targets.values()})
        else:
            make_folder(folder, f"--output {folder}")
        self._video: _OpenVideo | None = None
        self.written: list[Path] = []

    def add(self, found: Found) -> None:
        """Writes the files of an image; appends a frame."""
        picture = found.picture
        if self._video is not None and picture.source != self._video.source:
            self.close()
        target = self._targets[picture.source]
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn = self._drawn(found)
        if picture.frame is None:
            file = target.with_name(f"{target.name}{DRAWN}.jpg")
            drawn.save(file, **PICTURE)
            content = {"image": picture.source, "detections": found.rows(self._names)}
            write_json(file.with_suffix(".json"), content)
            self.written.append(file)
            return
        if self._video is None:
            self._video = _OpenVideo(picture.source, target)
            self.written.append(self._video.file)
        self._video.add(drawn, _line(found, self._names))

    def _drawn(self, found: Found) -> Image.Image:
        """The picture with its boxes; one color per class, or per object that is followed."""
        if found.tracks is None:
            return draw_detections(found.picture.pixels, found.detections, self._names)
        classes = found.detections.classes.tolist()
        labels = {track: f"{self._names[row]} #{track}" for track, row in zip(found.tracks, classes, strict=True)}
        of_tracks = replace(found.detections, classes=torch.tensor(found.tracks, dtype=torch.int64))
        return draw_detections(found.picture.pixels, of_tracks, labels)

    def close(self) -> None:
        """Ends the last video."""
        if self._video is not None:
            self._video.close()
            self._video = None

    def where(self) -> str:
        """The one file, or the folder of several."""
        if not self.written:
            return ""
        if len(self.written) == 1:
            return f"; see {self.written[0]}"
        return f" in {len(self.written)} sources; see {self._folder or 'the files beside them'}"


class _OpenVideo:
    """The two files of a video that is not at its end: frames with boxes, and a line of JSON for each."""

    def __init__(self, source: str, target: Path):
        """
        Args:
            target: path of the files, without an ending.
        """
        self.source = source
        self.file = target.with_name(f"{target.name}{DRAWN}.mp4")
        self._frames = VideoWriter(self.file, describe_video(Path(source))[0])
        self._lines = self.file.with_suffix(".jsonl").open("w", encoding="utf-8", errors="backslashreplace")

    def add(self, drawn: Image.Image, line: str) -> None:
        """Appends a frame."""
        self._frames.add(drawn)
        self._lines.write(line)

    def close(self) -> None:
        """Ends both files."""
        self._frames.close()
        self._lines.close()


def targets(sources: Sequence[str], folder: Path | None) -> dict[str, Path]:
    """The path, without an ending, of the files that are written for each source.

    Sources of one name keep their own ending in it: x.jpg and x.png give x.jpg.detections.jpg and
    x.png.detections.jpg. Where that does not tell them apart in the folder, as train/x.jpg and val/x.jpg, all sources
    keep their path below the folder that they all lie in.

    Raises:
        ValueError: two sources would have the same path.
    """
    files = {source: Path("stdin" if source == STANDARD_INPUT else source) for source in sources}
    parents = {source: folder or file.parent for source, file in files.items()}
    chosen = _targets_in(parents, files)
    if folder is not None and len(set(chosen.values())) < len(chosen):
        root = Path(os.path.commonpath([os.path.abspath(file.parent) for file in files.values()]))
        parents = {source: folder / name_below(root, file.parent) for source, file in files.items()}
        chosen = _targets_in(parents, files)
    of_path: dict[Path, str] = {}
    for source, target in chosen.items():
        if target in of_path:
            raise ValueError(
                f"{of_path[target]} and {source} would both be written to {target}.detections.jpg; give one after the "
                "other, or write one file for all with --write coco or --write lines"
            )
        of_path[target] = source
    return chosen


def _targets_in(parents: Mapping[str, Path], files: Mapping[str, Path]) -> dict[str, Path]:
    """The path of each source's files in its folder, with the source's own ending where its stem is there twice."""
    stems = {source: parents[source] / file.stem for source, file in files.items()}
    count = Counter(stems.values())
    return {source: parents[source] / files[source].name if count[stem] > 1 else stem for source, stem in stems.items()}


def _new_file(path: Path) -> Path:
    """A file that is to be written, whose folder is made if it does not exist.

    Raises:
        ValueError: it is there already, also as a folder or a device, or its folder cannot be made or written to.
    """
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder; name a file, such as {path / 'detections.json'}")
    if path.exists() and not path.is_file():
        raise ValueError(f"--output {path} is no file; --write lines without --output writes to standard output")
    if path.exists():
        raise ValueError(f"{path} exists; delete it, or name another file with --output")
    make_folder_of(path)
    return path


class CocoFile:
    """One file in COCO's form: images, categories, and annotations that have a score."""

    def __init__(self, path: Path, names: Sequence[str]):
        """
        Args:
            path: written at the end; its folder is made if it does not exist.

        Raises:
            ValueError: it is there already, or its folder cannot be made or written to.
        """
        self._path = _new_file(path)
        self._names = list(names)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, found: Found) -> None:
        """Takes the boxes of a picture; frames of a video have its name, their position and their time."""
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
        """Writes the file."""
        categories = [{"id": row + 1, "name": name} for row, name in enumerate(self._names)]
        content = {"images": self._images, "categories": categories, "annotations": self._annotations}
        write_json(self._path, content, indent=None)

    def where(self) -> str:
        """The file."""
        return f"; see {self._path}"


class JsonLines:
    """A line of JSON per picture, written at once, so that another program can follow."""

    def __init__(self, path: Path | None, names: Sequence[str]):
        """
        Args:
            path: begun with the first picture; None for standard output. Its folder is made if it does not exist.

        Raises:
            ValueError: it is there already, or its folder cannot be made or written to.
        """
        self._names = list(names)
        self._path = None if path is None else _new_file(path)
        self._file = sys.stdout if path is None else None

    def add(self, found: Found) -> None:
        """Writes the line of a picture."""
        if self._file is None:
            assert self._path is not None
            self._file = self._path.open("x", encoding="utf-8", errors="backslashreplace")
        self._file.write(_line(found, self._names))
        self._file.flush()

    def close(self) -> None:
        """Closes the file, but not standard output."""
        if self._file is not None and self._file is not sys.stdout:
            self._file.close()

    def where(self) -> str:
        """The file, if there is one."""
        return "" if self._path is None else f"; see {self._path}"


def _line(found: Found, names: Sequence[str]) -> str:
    """A line of JSON; bytes of a file's name that are not UTF-8 are spelled out as the output's `errors` say."""
    picture = found.picture
    frame = {} if picture.frame is None else {"frame": picture.frame, "time_s": round(picture.time_s or 0.0, 3)}
    content = {"image": picture.source, **frame, "detections": found.rows(names)}
    return json.dumps(content, ensure_ascii=False) + "\n"
