"""Save a trained detector as a folder to share: all that `load_detector` needs, and its metrics."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelCard

from ovd.build.detector import load_original_clip
from ovd.build.model_card import METRICS, metrics_of
from ovd.build.trained import TrainedDetector
from ovd.clip.load import TINY_CLIP
from ovd.clip.save import WEIGHTS_FILE, copy_clip, save_clip
from ovd.config.training import ClipConfig
from ovd.engine import checkpoint
from ovd.engine.notes import Notes
from ovd.files import write_json
from ovd.text.encoder import text_tower_fingerprint

CARD = "README.md"
"""Name of the model card's file."""
_UNFINISHED = "unfinished-"
"""Beginning of the name of the folder in which the files are written before they are moved to their places."""


def check_packable(trained: TrainedDetector, folder: Path) -> None:
    """Check that `save_packaged` may write into a folder.

    Raises:
        ValueError: the detector has experts, which are folders of their own; or the folder already holds a detector, a
            run, or the config or metrics of something else, which would be mistaken for this one's.
    """
    if trained.experts.folders:
        raise ValueError(
            "a detector is saved without its experts: load it without them, and share their folders separately"
        )
    if (folder / checkpoint.MANIFEST).exists():
        raise ValueError(f"{folder} already contains a detector; give another folder, or delete this one")
    if any(checkpoint.step_of(path) is not None for path in folder.glob("step-*")):
        raise ValueError(
            f"{folder} contains a run, in whose place the saved detector would be read; give another folder"
        )
    for name in ("config.json", METRICS):
        if (folder / name).exists() and not (name == METRICS and _has_own_metrics(folder, trained)):
            raise ValueError(f"{folder} has a {name} that is not of ovd; give another folder")


def _has_own_metrics(folder: Path, trained: TrainedDetector) -> bool:
    """Whether the metrics.json in a folder is the detector's, as an interrupted write may leave it."""
    metrics = metrics_of(trained)
    try:
        return metrics is not None and bool(json.loads((folder / METRICS).read_text(encoding="utf-8")) == metrics)
    except (OSError, ValueError):
        return False


def save_packaged(trained: TrainedDetector, folder: Path, card: ModelCard) -> None:
    """Write the weights that the detector is evaluated with, its config, calibration and metrics.

    A CLIP model that others cannot load by its name is saved as well: one from a local folder or file, or with random
    weights. The manifest is written last, so an interrupted write leaves nothing that `load_detector` would accept, and
    can be repeated.

    Args:
        card: model card, written as README.md unless the folder has one.

    Raises:
        ValueError: as `check_packable`.
        SaveError: writing failed.
    """
    check_packable(trained, folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _without_folders(trained.config.model_dump())
    config["train"]["device"] = "auto"
    is_local = _is_local(trained.config.clip)
    notes = Notes(
        text_tower=text_tower_fingerprint(trained.clip),
        classes=trained.classes,
        calibration=None if trained.calibration is None else trained.calibration.to_json(),
        has_clip=is_local,
    )
    attached = {}
    if trained.calibration is not None:
        attached["trained_text"] = trained.calibration.trained_text
    if trained.mean_example is not None:
        attached["mean_example"] = trained.mean_example
    if is_local:
        config["clip"] = {"name": checkpoint.CLIP_FOLDER}
        _save_clip(trained, folder / checkpoint.CLIP_FOLDER)
    for interrupted in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(interrupted)
    with TemporaryDirectory(dir=folder, prefix=_UNFINISHED) as temporary:
        made = checkpoint.save_weights(
            Path(temporary), tensors=trained.detector.state_dict(), config=config, notes=notes, attached=attached
        )
        if (metrics := metrics_of(trained)) is not None:
            write_json(made / METRICS, metrics)
        if not (folder / CARD).exists():
            card.save(made / CARD)
        for part in sorted(made.iterdir(), key=lambda path: path.name == checkpoint.MANIFEST):
            part.replace(folder / part.name)


def _without_folders(value: Any) -> Any:
    """Return settings with each path cut to its last part, since local folders are private."""
    match value:
        case Path():
            return value.name
        case dict():
            return {key: _without_folders(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_folders(item) for item in value]
    return value


def _is_local(clip: ClipConfig) -> bool:
    """Whether a CLIP model can be loaded on this machine only."""
    return clip.name != "tiny" and (Path(clip.name).is_dir() or clip.weights == "random" or _is_file(clip.weights))


def _is_file(weights: str | None) -> bool:
    return weights is not None and Path(weights).is_file()


def _save_clip(trained: TrainedDetector, folder: Path) -> None:
    name = trained.config.clip.name
    if (Path(name) / WEIGHTS_FILE).is_file() and Path(name) != TINY_CLIP:
        copy_clip(Path(name), folder)
    else:
        save_clip(load_original_clip(trained.config), name, folder)
