"""Export of boxes in Pascal VOC format."""

import os
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from ovd.data.export.flat_names import flat_names
from ovd.data.export.labeled_set import LabeledSet, rows_of
from ovd.data.export.xml_text import xml_text
from ovd.data.images.files import is_image_name


def write_voc(labeled: LabeledSet, folder: Path) -> None:
    """Write an XML file for each image, the list of these files, and the class names."""
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    files = [image.file for image in labeled.images]
    # Readers first look for an image with the XML file's own name, which must not be another image.
    others = {os.path.splitext(entry.name)[0] for entry in os.scandir(labeled.root) if is_image_name(entry.name)}
    stems = [os.path.splitext(file)[0] for file in flat_names(files, avoid=others)]
    for image, stem in zip(labeled.images, stems, strict=True):
        root = Element("annotation")
        SubElement(root, "filename").text = image.file
        size = SubElement(root, "size")
        for side, value in (("width", image.width), ("height", image.height), ("depth", 3)):
            SubElement(size, side).text = str(value)
        corners = image.boxes.astype(np.float64).round()
        for (x0, y0, x1, y1), name, score in rows_of(corners, image):
            item = SubElement(root, "object")
            SubElement(item, "name").text = labeled.names[name]
            SubElement(item, "difficult").text = "0"
            SubElement(item, "score").text = str(score)
            box = SubElement(item, "bndbox")
            # VOC counts pixels from 1, and the last pixel belongs to the box.
            for corner, pixel in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
                SubElement(box, corner).text = str(int(pixel))
        (folder / "Annotations" / f"{stem}.xml").write_text(xml_text(root), encoding="utf-8")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in labeled.names), encoding="utf-8")
