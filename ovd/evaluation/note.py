"""What the evaluation in a folder is of: its weights and data set, and what it was asked and compared with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ovd.files import write_json

NOTE = "evaluation.json"
OLD_NOTES = ("measured_weights.json", "evaluated.json", "compared.json")
"""The files that earlier versions had in its place: of the weights, the options and the inputs."""


@dataclass(frozen=True)
class EvaluationNote:
    """Of the evaluation in a folder. By default nothing is known of it."""

    weights_sha256: str | None = None
    """Of the evaluated weights; None if they are in no file, or while the evaluation has not ended."""
    is_of_own_set: bool = False
    """Whether these weights alone were evaluated as their run does it: on its validation set, at its size of images,
    without experts, and not as an exported file."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of `ovd eval` that say what is evaluated on what; none of an evaluation by another command."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Hashes and settings of what `ovd fine-tune` compares: while they agree, it does not repeat the evaluation."""


def read_note(folder: Path) -> EvaluationNote | None:
    """The note of the evaluation in a folder; None if there is none, as beside the metrics of a training.

    Of a note that was cut short nothing is known. Files of earlier versions are read as the note that they are.
    """
    if (folder / NOTE).is_file():
        content = _read(folder / NOTE)
        return EvaluationNote(
            weights_sha256=content.get("weights_sha256"),
            is_of_own_set=content.get("is_of_own_set", False),
            options=content.get("options", {}),
            inputs=content.get("inputs", {}),
        )
    if not any((folder / name).is_file() for name in OLD_NOTES):
        return None
    weights, options, inputs = (_read(folder / name) for name in OLD_NOTES)
    sha256 = weights.get("sha256")  # they noted only the weights of evaluations on the run's own set
    return EvaluationNote(sha256, sha256 is not None, options, inputs)


def write_note(folder: Path, note: EvaluationNote) -> None:
    """Write the note, in place of one of an earlier version."""
    write_json(folder / NOTE, asdict(note))
    for name in OLD_NOTES:
        (folder / name).unlink(missing_ok=True)


def remove_note(folder: Path) -> None:
    """Remove the note of an earlier evaluation, of any version."""
    for name in (NOTE, *OLD_NOTES):
        (folder / name).unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    """The object in a file; an empty one if it is missing or was cut short."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
