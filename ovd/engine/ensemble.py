"""Averages of the weights of two stages of training, such as a detector before and after self-training.

Further training improves on its own data and degrades elsewhere; interpolated weights before and after often keep most
of both (arXiv:2109.01903 for CLIP, arXiv:2306.09683 for detectors).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd.engine import checkpoint
from ovd.engine.checkpoint import Checkpoint
from ovd.engine.early_stop import without_early_stop
from ovd.engine.notes import AveragedCheckpoints
from ovd.engine.weights_file import load_weights
from ovd.files import make_folder
from ovd.join_first import join_first
from ovd.text.names import isin_names

_NUM_LISTED = 20
_TRAINING_ONLY = {"freeze_backbone", "frozen_layers", "recompute", "drop_path"}
"""Settings of a detector that affect its training but not its outputs."""


def save_ensemble(first: Checkpoint, second: Checkpoint, *, weight: float, output: Path) -> Path:
    """Write weight * second + (1 - weight) * first as a run that can be evaluated like any other, but not resumed.

    The weights are those that the checkpoints are evaluated with: the averages over steps if the runs keep them. Config
    and evaluation settings are the second's. Weights of 0 and 1 give the first and the second run bit for bit. A
    calibration is fitted to certain weights, so the second's is kept only with a weight of 1.

    Args:
        weight: weight of the second checkpoint, 0 to 1.
        output: run folder for one checkpoint, step 0.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: the weight is outside 0 to 1; the runs differ in detector, CLIP or text tower; only one of them is
            the run of an expert; both are, and their experts learned different names or have low-rank adapters; or
            `output` already holds a run or a detector, or cannot be made or written to.
        SaveError: writing failed.
    """
    experts = [found.folder for found in (first, second) if found.config_with_clip_path().get("expert") is not None]
    if len(experts) == 1:
        raise ValueError(
            f"{experts[0]} is the run of an expert, but the other run is not; an expert is not averaged, but used "
            "with its detector (--expert)"
        )
    checkpoint.refuse_checkpoint_folder(output)
    if checkpoint.latest(output) is not None:
        raise ValueError(f"{output} already contains a run; give another folder")
    second_config = second.config_with_clip_path()
    different = detector_differences(first.config_with_clip_path(), second_config)
    text_towers = (first.notes.text_tower, second.notes.text_tower)
    if text_towers[0] != text_towers[1]:
        different.append(f"text tower ({text_towers[0]!r} and {text_towers[1]!r})")
    expert = second_config.get("expert") or {}
    learns_names = expert.get("learn") == "names"  # the weights have a row for each class, in the order of the classes
    if learns_names and first.notes.classes != second.notes.classes:
        different.append("the classes whose names were learned (expert.learn=names)")
    if expert.get("rank"):
        different.append("low-rank adapters (expert.rank), of which only the products could be averaged")
    if different:
        raise ValueError(
            f"{first.folder} and {second.folder} cannot be averaged; they differ in: {'; '.join(different)}"
        )
    first_tensors, second_tensors = load_weights(first.weights), load_weights(second.weights)
    try:
        tensors = interpolate(first_tensors, second_tensors, weight)
    except ValueError as error:
        raise ValueError(f"{first.weights} and {second.weights}: {error}") from error
    make_folder(output, str(output))
    sources = AveragedCheckpoints(
        first=str(first.folder),
        second=str(second.folder),
        weight=weight,
        first_sha256=first.weights_sha256(),
        second_sha256=second.weights_sha256(),
    )
    notes, attached = without_early_stop(second)
    notes = replace(notes, ensemble=sources, has_clip=False, is_calibration_pending=False)
    if not learns_names:
        notes = replace(notes, classes=_trained_classes(first, second, weight))
    if weight != 1:  # `mean_example` is kept: it is of CLIP's own image side, which both runs share
        notes = replace(notes, calibration=None)
        attached.pop("trained_text", None)
    return checkpoint.save_weights(
        output,
        tensors=tensors,
        config=second_config | {"output": str(output)},
        notes=notes,
        attached=attached,
    )


def _trained_classes(first: Checkpoint, second: Checkpoint, weight: float) -> tuple[str, ...]:
    """Return the class names that the weights were trained on: the second's, then those that only the first has."""
    first_classes, second_classes = first.notes.classes, second.notes.classes
    if weight in (0, 1):
        return second_classes if weight else first_classes
    known = isin_names(first_classes, second_classes)
    return (*second_classes, *(name for name, is_known in zip(first_classes, known, strict=True) if not is_known))


def interpolate(first: dict[str, Tensor], second: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Compute weight * second + (1 - weight) * first per tensor; tensors that are not floating-point must be equal.

    A detector's logit scale is stored as its logarithm, so two scales s and t give s^(1 - weight) * t^weight. The bias
    is stored as a threshold on the cosine (bias = -scale * threshold), and the thresholds are averaged.

    Raises:
        ValueError: the weight is outside 0 to 1, or tensors do not correspond, listed by name.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the second run's weight is {weight}; it must be from 0 to 1")
    problems = [f"{name} is only in one of them" for name in sorted(first.keys() ^ second.keys())]
    for name in sorted(first.keys() & second.keys()):
        one, other = first[name], second[name]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            problems.append(f"{name} is {one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}")
        elif not one.is_floating_point() and not torch.equal(one, other):
            problems.append(f"{name} is {one.dtype}, which cannot be averaged, and the values differ")
    if problems:
        named = join_first(problems, _NUM_LISTED, separator="; ")
        raise ValueError(f"their tensors do not match: {named}")
    if weight in (0, 1):  # bit for bit: sums would lose the sign of -0.0
        return dict(second if weight else first)
    return {name: _mean(one, second[name], weight) if one.is_floating_point() else one for name, one in first.items()}


def _mean(first: Tensor, second: Tensor, weight: float) -> Tensor:
    return torch.lerp(first.double(), second.double(), weight).to(first.dtype)


def detector_differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """List the settings in which two resolved configs differ and that prevent averaging their detectors.

    A setting that is missing in one of the configs, which is then from an earlier version, is not compared.
    """
    different = []
    for section in ("clip", "detector"):
        first_section, second_section = first.get(section, {}), second.get(section, {})
        for key in sorted(first_section.keys() & second_section.keys() - _TRAINING_ONLY):
            if first_section[key] != second_section[key]:
                different.append(f"{section}.{key} ({first_section[key]!r} and {second_section[key]!r})")
    return different
