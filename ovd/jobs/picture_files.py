"""Output of detections as pictures and videos with boxes drawn, and JSON files beside them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ovd.data.images.files import DRAWN, name_below
from ovd.data.images.media import STANDARD_INPUT
from ovd.data.images.video import VideoWriter, describe_video
from ovd.files import atomic_write, make_folder, write_json
from ovd.jobs.picture_detections import PictureDetections, json_line
from ovd.visualize.boxes import draw_detections

PICTURE: dict[str, Any] = {"format": "JPEG", "quality": 95, "subsampling": 0}
"""Options for saving pictures. Saving a phone's picture (12 million pixels) as PNG takes a hundred times as long."""


class PictureFiles:
    """Output of a picture with boxes and a JSON file per image, and of a video with boxes and JSON lines per video.

    The files are written beside their sources or into a folder.
    """

    def __init__(self, sources: Sequence[str], names: Sequence[str], folder: Path | None):
        """
        Args:
            folder: output folder, made if it does not exist; None to write beside the sources. If two sources have the
                same name, it gets their subfolders, relative to the folder that contains all sources.

        Raises:
            ValueError: the files of two sources would have the same path, the folder cannot be made or written to, or,
                without one, the folder of a source cannot be written to.
        """
        self._names = list(names)
        self._folder = folder
        self._targets = targets(sources, folder)
        if folder is None:
            _check_folders({target.parent for target in self._targets.values()})
        else:
            make_folder(folder, f"--output {folder}")
        self._video: _OpenVideo | None = None
        self.written: list[Path] = []

    def add(self, found: PictureDetections) -> None:
        """Write the files of an image, or append a frame to those of its video."""
        picture = found.picture
        if self._video is not None and picture.source != self._video.source:
            self.close()
        target = self._targets[picture.source]
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn = self._draw(found)
        if picture.frame is None:
            file = target.with_name(f"{target.name}{DRAWN}.jpg")
            with atomic_write(file, "wb") as stream:
                drawn.save(stream, **PICTURE)
            content = {"image": picture.source, "detections": found.rows(self._names)}
            write_json(file.with_suffix(".json"), content)
            self.written.append(file)
            return
        if self._video is None:
            self._video = _OpenVideo(picture.source, target)
            self.written.append(self._video.file)
        self._video.add(drawn, json_line(found, self._names))

    def _draw(self, found: PictureDetections) -> Image.Image:
        """Draw the boxes on the picture, in one color per class, or per track if objects are tracked."""
        if found.tracks is None:
            return draw_detections(found.picture.pixels, found.detections, self._names)
        classes = found.detections.classes.tolist()
        labels = {track: f"{self._names[row]} #{track}" for track, row in zip(found.tracks, classes, strict=True)}
        of_tracks = replace(found.detections, classes=torch.tensor(found.tracks, dtype=torch.int64))
        return draw_detections(found.picture.pixels, of_tracks, labels)

    def close(self) -> None:
        """Close the files of the last video."""
        if self._video is not None:
            self._video.close()
            self._video = None

    def describe_location(self) -> str:
        """Return the one file, or the folder of several, as the end of a sentence."""
        if not self.written:
            return ""
        if len(self.written) == 1:
            return f"; see {self.written[0]}"
        return f" in {len(self.written)} sources; see {self._folder or 'the files beside them'}"


def _check_folders(folders: Iterable[Path]) -> None:
    """Check that pictures can be written beside their sources.

    Raises:
        ValueError: a folder cannot be written to.
    """
    for folder in sorted(folders):
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise ValueError(
                f"{folder} cannot be written to; give another folder for the pictures with --output FOLDER"
            )


class _OpenVideo:
    """The two open files of a video: frames with boxes, and a JSON line per frame."""

    def __init__(self, source: str, target: Path):
        """
        Args:
            target: path of the files, without suffix.
        """
        self.source = source
        self.file = target.with_name(f"{target.name}{DRAWN}.mp4")
        self._frames = VideoWriter(self.file, describe_video(Path(source))[0])
        self._lines = self.file.with_suffix(".jsonl").open("w", encoding="utf-8", errors="backslashreplace")

    def add(self, drawn: Image.Image, line: str) -> None:
        """Append a frame and its JSON line."""
        self._frames.add(drawn)
        self._lines.write(line)

    def close(self) -> None:
        """Close both files."""
        self._frames.close()
        self._lines.close()


def targets(sources: Sequence[str], folder: Path | None) -> dict[str, Path]:
    """Choose the path, without suffix, of the files that are written for each source.

    Sources of the same name keep their suffix in it: x.jpg and x.png give x.jpg.detections.jpg and
    x.png.detections.jpg. If two would still have the same path in `folder`, such as train/x.jpg and val/x.jpg, all
    sources keep their path relative to the folder that contains them all.

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
                f"{of_path[target]} and {source} would both be written to {target}.detections.jpg; give them in "
                "separate calls, or write one file for all with --write coco or --write lines"
            )
        of_path[target] = source
    return chosen


def _targets_in(parents: Mapping[str, Path], files: Mapping[str, Path]) -> dict[str, Path]:
    """Return the path of each source's files in its folder, with the source's suffix where its stem occurs twice."""
    stems = {source: parents[source] / file.stem for source, file in files.items()}
    count = Counter(stems.values())
    return {source: parents[source] / files[source].name if count[stem] > 1 else stem for source, stem in stems.items()}
