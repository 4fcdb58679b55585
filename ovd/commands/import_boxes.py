r"""Convert an export of an annotation tool to one clean JSON file in COCO's form.

    ovd import-boxes coco --annotations export/result.json --images export/images --output train.json
    ovd import-boxes coco --annotations roboflow/train --output data/mine/train.json
    ovd import-boxes labelme --annotations photos --output data/mine/train.json
    ovd import-boxes cvat --annotations annotations.xml --images photos --output data/mine/train.json
    ovd import-boxes csv --annotations train_labels.csv --images photos --output data/mine/train.json
    ovd import-boxes via --annotations photos/via_region_data.json --output data/mine/train.json
    ovd import-boxes open_images --annotations train-annotations-bbox.csv --images oi/train \
        --class-names class-descriptions-boxable.csv --output data/oi/train.json

Formats: `coco` (COCO's own, Label Studio's, CVAT's, Roboflow's folders), `voc`, `yolo`, `labelme` (also
X-AnyLabeling's), `cvat` (its own XML, of images or of a video), `csv` (a row per object: TensorFlow's, Roboflow's,
RetinaNet's), `via` (JSON of the VGG Image Annotator) and `open_images`. Images and annotations are read where they are;
nothing is copied or changed. The report OUTPUT.report.json beside the output lists everything that was left out or
repaired, with the first 20 records of each kind.
"""

import argparse
from pathlib import Path
from typing import get_args

from ovd.choices import ImportFormatName
from ovd.commands.arguments import add_format_options, format_options
from ovd.jobs.import_boxes import import_into_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=get_args(ImportFormatName), help="format of the export")
    parser.add_argument("--annotations", type=Path, required=True, help="the exported file or folder")
    parser.add_argument(
        "--images", type=Path, help="folder of the images; not needed if the annotations say where they are"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write; must not exist")
    parser.add_argument("--crowds-as-objects", action="store_true", help="turn crowd regions into objects, since CVAT "
                        "exports every mask as a crowd")  # fmt: skip
    parser.add_argument("--attribute", help="via: the attribute that holds the class name, if regions have several")
    add_format_options(parser, default_split="train")
    arguments = parser.parse_args()
    imported = import_into_file(
        arguments.annotations,
        arguments.images,
        arguments.format,
        arguments.output,
        options=format_options(arguments),
        crowds_as_objects=arguments.crowds_as_objects,
    )
    print(imported.summary)
