"""Average the weights of two runs, for example before and after self-training, into a third that can be evaluated.

    ovd ensemble runs/base runs/selftrained --weight 0.5 --output runs/ensembled
    ovd eval runs/ensembled

Both must have the same detector, CLIP and text tower; an expert is not averaged with its detector. The output has no
optimizer state: it cannot be resumed, but a new run can start from it with init_from=runs/ensembled.
"""

import argparse
from pathlib import Path

from ovd.commands.arguments import closed_fraction
from ovd.files import refuse_missing_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="run folder (its newest checkpoint) or checkpoint folder")
    parser.add_argument(
        "second", type=Path, help="the same for the second run, whose data and evaluation settings the output gets"
    )
    parser.add_argument(
        "--weight", type=closed_fraction, default=0.5, help="weight of the second run, 0 to 1 (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="run folder to write")
    arguments = parser.parse_args()
    for run in (arguments.first, arguments.second):
        refuse_missing_run(run)
    from ovd.build.trained import find_checkpoint, stored_config
    from ovd.engine.ensemble import save_ensemble

    first, second = find_checkpoint(arguments.first), find_checkpoint(arguments.second)
    for found in (first, second):
        stored_config(found)  # an error for the run of an alignment, whose average nothing could read
    folder = save_ensemble(first, second, weight=arguments.weight, output=arguments.output)
    print(f"{folder}: {1 - arguments.weight:g} x {first.folder} + {arguments.weight:g} x {second.folder}")
    calibrated = [str(found.folder) for found in (first, second) if found.notes.calibration is not None]
    if calibrated and arguments.weight != 1:
        print(f"calibrated: {' and '.join(calibrated)}; the average is not, so its scores are not probabilities")
