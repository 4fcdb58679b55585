"""Draw the embedded world: a small LVIS, its image-text pairs, and two transfer sets.

    python tools/make_world.py                       # all except the pairs for pretraining the tiny CLIP
    python tools/make_world.py --parts train val     # only these
    python tools/make_world.py --foreign shapes      # a data set that shares nothing with the world, to fine-tune on

Existing parts are not drawn again.
"""

import argparse
from pathlib import Path
from typing import get_args

from ovd.choices import Domain
from ovd.cli import run_tool
from ovd.data.world.build import PARTS, build_world
from ovd.data.world.foreign import ForeignSettings, build_foreign
from ovd.data.world.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=Path("data/world"), help="folder of drawn worlds (default: %(default)s)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        help="parts to draw (default: all except pretraining_pairs)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the scenes and the rare classes (default: %(default)s)"
    )
    parser.add_argument(
        "--foreign",
        choices=get_args(Domain),
        help="draw this foreign data set instead, in the folder foreign beside --root",
    )
    arguments = parser.parse_args()
    if arguments.foreign is not None:
        if arguments.parts is not None:
            parser.error("--parts are those of the world; --foreign draws its whole data set")
        print(build_foreign(arguments.root.parent / "foreign", ForeignSettings(arguments.foreign, seed=arguments.seed)))
        return
    parts = arguments.parts or [part for part in PARTS if part != "pretraining_pairs"]
    print(build_world(arguments.root, tuple(parts), Settings(seed=arguments.seed)))


if __name__ == "__main__":
    run_tool(main)
