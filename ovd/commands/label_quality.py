r"""Measure how many of a teacher's pseudo-labels are correct, and how many of the known true objects they find.

    ovd label-quality LABELS_FOLDER --pairs data/world/KEY/pairs
    ovd label-quality LABELS_FOLDER --pairs data/world/KEY/pairs \
        --annotations data/world/KEY/annotations/lvis_train.json --thresholds 0.1 0.3 0.5

The true objects are read from the pairs' JSON members (`boxes`, `names`); the embedded world's pairs have them. An LVIS
file adds synonyms and the frequencies of the names.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from ovd.commands.arguments import closed_fraction
from ovd.files import make_parent_folder, write_json
from ovd.format_count import format_count
from ovd.jobs.label_quality import label_quality
from ovd.selftrain.quality import format_quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, help="folder of label files from `ovd label-pairs`")
    parser.add_argument(
        "--pairs", type=Path, required=True, help="folder of the shards of image-text pairs that the labels belong to"
    )
    parser.add_argument("--annotations", type=Path, help="LVIS file with the names' synonyms and frequencies")
    parser.add_argument(
        "--thresholds",
        type=closed_fraction,
        nargs="+",
        default=[0.0, 0.05, 0.1, 0.2, 0.3, 0.5],
        help="score thresholds to measure at (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, help="JSON file to write the same numbers to")
    arguments = parser.parse_args()

    if arguments.output is not None:
        make_parent_folder(arguments.output)
    found = label_quality(arguments.labels, arguments.pairs, arguments.annotations, thresholds=arguments.thresholds)
    print(format_quality(found.rows))
    print(
        f"{format_count(found.num_pairs, 'pair')} compared; "
        f"{format_count(found.num_left_out, 'pair')} left out, whose true objects are not known"
    )
    if found.capped:
        print(found.capped)
    if arguments.output is not None:
        content = {
            "num_pairs": found.num_pairs,
            "num_pairs_left_out": found.num_left_out,
            "rows": list(map(asdict, found.rows)),
        }
        write_json(arguments.output, content)
