"""Note on the evaluation in a folder: the evaluated weights, the options, and the inputs of a comparison."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ovd.files import write_json

NOTE_FILE = "evaluation.json"
LEGACY_NOTES = ("measured_weights.json", "evaluated.json", "compared.json")
"""Files of earlier versions with the weights, the options and the inputs."""


@dataclass(frozen=True)
class EvaluationNote:
    """Note on the evaluation in a folder. With the defaults nothing is known about it."""

    weights_sha256: str | None = None
    """SHA-256 of the evaluated weights file; None if the weights are in no file or the evaluation has not ended."""
    is_of_own_set: bool = False
    """Whether the weights were evaluated as their own run does it: on its validation set, at its image size, without
    experts, and not as an exported file."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of `ovd eval` that determine what is evaluated on what; empty for an evaluation by another command."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Hashes and settings of what `ovd fine-tune` compares; while they are the same, the evaluation is not repeated."""


def read_note(folder: Path) -> EvaluationNote | None:
    """Read the note on the evaluation in a folder; None if there is none, as beside the metrics of a training.

    A truncated note is read as one with the defaults. Files of earlier versions are converted to a note.
    """
    if (folder / NOTE_FILE).is_file():
        content = _read(folder / NOTE_FILE)
        return EvaluationNote(
            weights_sha256=content.get("weights_sha256"),
            is_of_own_set=content.get("is_of_own_set", False),
            options=content.get("options", {}),
            inputs=content.get("inputs", {}),
        )
    if not any((folder / name).is_file() for name in LEGACY_NOTES):
        return None
    weights, options, inputs = (_read(folder / name) for name in LEGACY_NOTES)
    sha256 = weights.get("sha256")  # only evaluations on the run's own set stored their weights
    return EvaluationNote(sha256, sha256 is not None, options, inputs)


def write_note(folder: Path, note: EvaluationNote) -> None:
    """Write the note and remove the files of earlier versions."""
    write_json(folder / NOTE_FILE, asdict(note))
    for name in LEGACY_NOTES:
        (folder / name).unlink(missing_ok=True)


def remove_note(folder: Path) -> None:
    """Remove the note on an earlier evaluation, from any version."""
    for name in (NOTE_FILE, *LEGACY_NOTES):
        (folder / name).unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file; empty if the file is missing or truncated."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
