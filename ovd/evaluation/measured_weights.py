"""Which weights the evaluation in a folder, on their own validation set, is of."""

import json
from pathlib import Path

from ovd.files import sha256_of, write_json

MEASURED = "measured_weights.json"


def note_measured_weights(folder: Path, weights: Path) -> None:
    """Note the hash of the weights that were evaluated, beside the metrics."""
    write_json(folder / MEASURED, {"sha256": sha256_of(weights)})


def measured_weights(folder: Path) -> str | None:
    """The sha256 of the weights; None if it is not noted."""
    try:
        return json.loads((folder / MEASURED).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
