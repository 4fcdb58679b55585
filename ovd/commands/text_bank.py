"""Encode the text variants of many classes once, into a bank that trainings on any of these classes can read.

    ovd text-bank configs/quickstart_base.yaml bank.draws=4 bank.tower_dropout=0.02
    ovd text-bank configs/quickstart_base.yaml --classes-file names.txt     # one name per line
    ovd train configs/quickstart_base.yaml bank.file=data/text_banks/KEY.safetensors

The first form encodes the config's training classes. The file is named after a hash of everything that it depends on;
an existing file is not built again.
"""

import argparse
from pathlib import Path

from ovd.cli import add_overrides, parse_with_overrides
from ovd.config.training import TrainConfig
from ovd.config_files import load_config
from ovd.data.formats.text_files import read_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, of which the sections `clip` and `bank` are used")
    add_overrides(parser, help="for example bank.templates=full")
    parser.add_argument(
        "--classes-file", type=Path, help="text file of class names, one per line (default: the config's)"
    )
    arguments = parse_with_overrides(parser)
    config = load_config(arguments.config, arguments.overrides, TrainConfig)  # before imports that take seconds
    from ovd.build.data import load_training_index
    from ovd.build.detector import load_configured_clip
    from ovd.build.text import build_class_bank

    if config.bank.file is not None:
        raise ValueError("bank.file names an existing bank; remove it from the config to build one")
    if arguments.classes_file is None:
        index = load_training_index(config)
        names, synonyms = index.names, index.synonyms
    else:
        names = tuple(dict.fromkeys(line for _, line in read_lines(arguments.classes_file)))
        if not names:
            raise ValueError(f"{arguments.classes_file}: no class name in this file")
        synonyms = ((),) * len(names)
    bank = build_class_bank(config, load_configured_clip(config.clip), names, synonyms)
    print(f"{bank.path}: {len(bank.names)} classes x {bank.variants.num_variants} variants x {bank.variants.dim}")
