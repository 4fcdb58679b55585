"""Make tar shards of image-text pairs from a TSV file.

python tools/import_pairs.py cc3m.tsv --columns caption,path --images cc3m_images --output data/cc3m

The same as `ovd import-pairs`, whose --help explains it.
"""

from ovd.cli import run_tool
from ovd.commands.import_pairs import main

if __name__ == "__main__":
    run_tool(main)
