"""Export of boxes in YOLO format."""

import csv
import shutil
from pathlib import Path

import numpy as np
import yaml

from ovd.data.export.flat_names import flat_names
from ovd.data.export.labeled_set import LabeledSet, rows_of


def write_yolo(labeled: LabeledSet, folder: Path, *, copy_images: bool) -> None:
    """Write data.yaml, scores.csv, labels/ and images/.

    images/ has links to the images, or copies of them, since readers look for labels beside the images.
    """
    files = flat_names([image.file for image in labeled.images])
    for part in ("images", "labels"):
        (folder / part).mkdir()
    # surrogateescape keeps the bytes of a name that is not UTF-8.
    with (folder / "scores.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as scores_file:
        table = csv.writer(scores_file, lineterminator="\n")
        table.writerow(["labels", "line", "class", "score"])
        for image, file in zip(labeled.images, files, strict=True):
            link, labels = folder / "images" / file, (folder / "labels" / file).with_suffix(".txt")
            _place(labeled.root / image.file, link, copy=copy_images)
            boxes = image.boxes.astype(np.float64) / ([image.width, image.height] * 2)
            centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            lines = []
            for numbers, name, score in rows_of(np.concatenate([centers, sides], axis=1), image):
                lines.append(f"{name} " + " ".join(f"{number:.6f}" for number in numbers) + "\n")
                table.writerow([str(labels.relative_to(folder)), len(lines), labeled.names[name], score])
            labels.write_text("".join(lines), encoding="utf-8")
    content = {"train": "images", "val": "images", "nc": len(labeled.names), "names": dict(enumerate(labeled.names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")


def _place(image: Path, link: Path, *, copy: bool) -> None:
    if copy:
        shutil.copyfile(image, link)
        return
    try:
        link.symlink_to(image.absolute())
    except OSError as error:
        raise OSError(f"{link}: the link to {image} cannot be created ({error}); use --copy-images") from error
