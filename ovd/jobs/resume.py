"""Find the checkpoint to resume from, and check that the run still has the same settings, data and start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovd.build.trained import check_text_tower, weights_file
from ovd.clip.load import Clip
from ovd.config.alignment import AlignConfig
from ovd.config.training import TrainConfig
from ovd.config_files import describe_differences, flatten, parse_config
from ovd.distributed import is_main
from ovd.engine.checkpoint import Checkpoint
from ovd.files import refuse_missing_run, sha256_of
from ovd.jobs.run_folder import latest_on_all_ranks

MUTABLE_ON_RESUME = (
    "output", "bank.cache", "eval.", "data.workers", "data.source.val_", "train.save_every", "train.keep_checkpoints",
    "train.eval_every", "train.wandb", "clip.activation",
)  # fmt: skip

_EVALUATION_KEYS = ("eval.", "data.source.val_", "train.eval_every")


def find_run(config: TrainConfig, *, resume: bool, strict_resume: bool = False) -> Checkpoint | None:
    """Return the checkpoint to resume from; None for a new run.

    Args:
        strict_resume: whether a damaged newest checkpoint is an error.

    Raises:
        ValueError: the run folder holds a run and `resume` is not set, the run has other settings, its checkpoints are
            damaged, or the ranks see different ones; or `init_from` is needed and does not exist.
    """
    checkpoint = latest_on_all_ranks(config.output, strict=strict_resume)
    if resume and is_main():
        print(
            f"resuming from {checkpoint.folder}"
            if checkpoint
            else f"{config.output} has no checkpoint; starting at step 0"
        )
    if checkpoint is not None:
        if not resume:
            raise ValueError(f"{config.output} already contains a run; add --resume, or give another output=FOLDER")
        check_same_run(checkpoint.config, config)
    if config.init_from is not None and (checkpoint is None or config.train.start_distillation):
        refuse_missing_run(config.init_from, "init_from")  # before all data is read
    return checkpoint


def check_same_run(
    stored: dict[str, Any], config: TrainConfig | AlignConfig, *, free: tuple[str, ...] = MUTABLE_ON_RESUME
) -> None:
    """Check that a resume continues the same run; a setting that was unknown when it started counts as its default.

    Args:
        free: prefixes of the names of settings that may differ.

    Raises:
        ValueError: other settings differ; the message names them.
    """
    if isinstance(config, TrainConfig) and config.train.patience:  # patience compares evaluations
        free = tuple(name for name in free if name not in _EVALUATION_KEYS)
    then = parse_config(stored, type(config), f"{config.output}, as it was started")
    before, now = flatten(then.model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    if different := describe_differences(before, now, free=free):
        raise ValueError(
            f"{config.output} was started with different settings: {different}. Resume it with its own settings, in "
            f"{config.output}/config.yaml; {_other_init_hint(then, config)}"
        )


def _other_init_hint(then: TrainConfig | AlignConfig, config: TrainConfig | AlignConfig) -> str:
    """Say how to train with settings other than those of a run; no training starts from the run of an expert.

    Args:
        then: config of the run.
    """
    if isinstance(config, TrainConfig) and isinstance(then, TrainConfig) and (config.expert or then.expert):
        return (
            f"to train with the new ones, keep init_from={config.init_from or then.init_from} and give another output"
        )
    return f"to continue with the new ones, start a new run from it: init_from={config.output} and another output"


def check_same_init(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Check that the detector that a run started from still has the same weights.

    Raises:
        ValueError: its weights have changed.
    """
    before = checkpoint.notes.init_sha256
    if before is None or config.init_from is None:
        return
    now = sha256_of(weights_file(config.init_from))
    if before != now:
        raise ValueError(
            f"{config.output} started from other weights than {config.init_from} has now (sha256 {before} and {now}); "
            "restore them, or give another output"
        )


def check_resumed(checkpoint: Checkpoint, config: TrainConfig, clip: Clip, data: Mapping[str, str]) -> None:
    """Check that text tower, data and start of a resumed run are unchanged; `check_same_run` checks its settings.

    The start matters only with `train.start_distillation`.

    Args:
        data: current fingerprints of the data, by name.

    Raises:
        ValueError: as raised by `check_text_tower`, `check_same_data` and `check_same_init`.
    """
    check_text_tower(checkpoint, clip)
    check_same_data(checkpoint.notes.data, data, config.output)
    if config.train.start_distillation:
        check_same_init(checkpoint, config)


def check_same_data(stored: Mapping[str, str], data: Mapping[str, str], output: Path) -> None:
    """Check that a resumed run has the same data: with other data, images, order and annotations would change.

    Args:
        stored: fingerprints in the checkpoint, by name; empty in checkpoints of early versions.
        data: current fingerprints, by name.

    Raises:
        ValueError: data has changed; the message names it.
    """
    different = [name for name, fingerprint in data.items() if stored.get(name, fingerprint) != fingerprint]
    if different:
        raise ValueError(
            f"{output} was started on other data: the {' and '.join(different)} changed since; restore the "
            "original data, or train on the present data with another output"
        )
