"""Convert an export of an annotation tool to one clean JSON file in COCO's form.

python tools/import_boxes.py coco --annotations export/result.json --images export/images --output train.json

The same as `ovd import-boxes`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.import_boxes import main

if __name__ == "__main__":
    run_tool(main)
