r"""Align a CLIP model's dense feature with the model's embeddings of image crops, by self-distillation.

    ovd align-backbone configs/align_tiny.yaml
    ovd align-backbone configs/align_rn50.yaml data.source.kind=shards \
        data.source.shards=cc12m output=runs/rn50_on_cc12m
    torchrun --nproc-per-node 8 -m ovd align-backbone configs/align_rn50.yaml

Only images are needed, no labels and no captions. The run folder is also the folder of the aligned model, for
clip.name=FOLDER; its report.json has the losses before and after. The same command continues an interrupted run.
"""

import argparse
import shlex
import sys
from pathlib import Path

from ovd.cli import add_overrides, parse_with_overrides
from ovd.config.alignment import AlignConfig
from ovd.config_files import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/align_tiny.yaml")
    add_overrides(parser, help="for example train.steps=50")
    arguments = parse_with_overrides(parser)
    config = load_config(arguments.config, arguments.overrides, AlignConfig)  # before imports that take seconds
    from ovd.jobs.align_backbone import align_backbone, format_report

    report = align_backbone(config, command=shlex.join(["python", *sys.argv]))
    if report:
        print(format_report(report))
        print(f"wrote the aligned model; use it with clip.name={config.output}")
