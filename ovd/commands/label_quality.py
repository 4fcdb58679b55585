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

from ovd.commands.arguments import number_from_0_to_1
from ovd.data.annotations import load_annotations
from ovd.data.category import Category
from ovd.files import make_folder_of, write_json
from ovd.selftrain.labels import label_files, read_labels
from ovd.selftrain.ledger import check_labels, describe_capped, open_labelled_shards, read_ledger
from ovd.selftrain.quality import format_quality, measure_quality, read_true_objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, help="folder of label files from `ovd label-pairs`")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of the image-text shards they belong to")
    parser.add_argument("--annotations", type=Path, help="LVIS file with the names' synonyms and frequencies")
    parser.add_argument(
        "--thresholds",
        type=number_from_0_to_1,
        nargs="+",
        default=[0.0, 0.05, 0.1, 0.2, 0.3, 0.5],
        help="default: %(default)s",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the same numbers")
    arguments = parser.parse_args()

    if arguments.output is not None:
        make_folder_of(arguments.output)
    files = label_files(arguments.labels)
    check_labels(files)
    shards = [read_labels(file) for file in files]
    pairs = open_labelled_shards(arguments.pairs, files)
    truth = [read_true_objects(pairs, pairs.positions(name)) for name in pairs.file_names]

    categories: tuple[Category, ...] = ()
    if arguments.annotations is not None:
        categories = load_annotations(arguments.annotations, None, format="lvis").categories
    rows = measure_quality(
        shards,
        truth,
        thresholds=arguments.thresholds,
        synonyms={category.name: category.synonyms for category in categories},
        rare=[category.name for category in categories if category.frequency == "r"],
        whole_captions=read_ledger(files[0]).settings.get("queries") == "caption",
    )
    num_pairs = sum(len(objects.captions) for objects in truth)
    num_unknown = num_pairs - sum(int(objects.is_known.sum()) for objects in truth)
    if num_pairs == num_unknown:
        raise ValueError(f"{arguments.pairs}: the true objects of no pair are known (`boxes` and `names` in its JSON)")
    print(format_quality(rows))
    print(f"{num_pairs - num_unknown} pairs; {num_unknown} more left out, whose true objects are not known")
    if capped := describe_capped(files):
        print(capped)
    if arguments.output is not None:
        content = {
            "num_pairs": num_pairs - num_unknown,
            "num_pairs_left_out": num_unknown,
            "rows": list(map(asdict, rows)),
        }
        write_json(arguments.output, content)
