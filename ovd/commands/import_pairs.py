"""Make tar shards of image-text pairs from a TSV file.

    ovd import-pairs cc3m.tsv --columns caption,path --images cc3m_images --output data/cc3m
    ovd import-pairs pairs.tsv --columns _,caption,base64 --output data/pairs

The file is UTF-8, with one pair per line and no header; a column `key` goes into each pair's JSON, and a column `_` is
left out. Images are decoded once as a check; pairs that cannot be used are reported by line in
OUTPUT/data_report.json, and too many of them stop the import. The shards get a manifest, against which later reads are
checked.
"""

import argparse
from pathlib import Path

from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.tsv import COLUMNS
from ovd.format_count import format_count
from ovd.jobs.import_pairs import import_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tsv", type=Path, help="TSV file of image-text pairs")
    parser.add_argument(
        "--columns", required=True, help=f"comma-separated names of the columns, from {', '.join(COLUMNS)}"
    )
    parser.add_argument("--images", type=Path, help="folder that paths in the column `path` are relative to")
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards; must not contain any")
    parser.add_argument(
        "--pairs-per-shard", type=int, default=1000, help="number of pairs in a shard (default: %(default)s)"
    )
    arguments = parser.parse_args()
    report = import_pairs(
        arguments.tsv,
        arguments.columns.split(","),
        arguments.images,
        arguments.output,
        pairs_per_shard=arguments.pairs_per_shard,
    )
    skipped = ", ".join(f"{finding} {count}" for finding, count in report.counts().items())
    pairs = format_count(len(PairShards(arguments.output)), "pair")
    print(f"{pairs} in {arguments.output}; left out: {skipped or 'none'}")
