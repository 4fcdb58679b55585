"""The folder of a run: who may write to it, whether it holds a run to go on with, and whether that is the same run."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ovd.build.data import samples_per_step
from ovd.build.trained import check_text_tower, weights_file
from ovd.clip.load import Clip
from ovd.config import AlignConfig, TrainConfig
from ovd.config_files import differences, flatten, parse_config
from ovd.distributed import device_of_rank, failing_together, gather, is_main, wait_for_all, world_size
from ovd.engine.checkpoint import MANIFEST, Checkpoint, latest
from ovd.engine.early_stop import ended_early
from ovd.files import only_writer, sha256_of, whole_file
from ovd.precision import describe_machine

FREE_ON_RESUME = (
    "output", "bank.cache", "eval.", "data.workers", "data.source.val_", "train.save_every", "train.keep_checkpoints",
    "train.eval_every", "train.wandb", "clip.activation",
)  # fmt: skip

_OF_EVALUATIONS = ("eval.", "data.source.val_", "train.eval_every")


def is_finished(found: Checkpoint, config: TrainConfig) -> bool:
    """Whether a checkpoint is the last one of its run."""
    return found.step == config.train.steps or ended_early(found.notes)


def find_run(config: TrainConfig, *, resume: bool, strict_resume: bool = False) -> Checkpoint | None:
    """The checkpoint to resume from; None for a new run.

    Raises:
        ValueError: the warm-up does not end within the run, its batch cannot be divided among the ranks, or what it
            needs besides data is not there; or there is a run and `resume` is not set, or there is one with other
            settings, or the ranks see different ones.
    """
    check_warmup(config)
    check_divisible(config)
    check_surroundings(config)
    if config.clip.weights == "random" and is_main():
        print("warning: clip.weights=random: neither images nor texts mean anything to this CLIP; give weights")
    found = latest_of_all_ranks(config.output, strict=strict_resume)
    if resume and is_main():
        print(f"goes on from {found.folder}" if found else f"{config.output} holds no checkpoint: starts at step 0")
    if found is not None:
        if not resume:
            raise ValueError(f"{config.output} already holds a run; give --resume, or another output=FOLDER")
        check_same_run(found.config, config)
    if is_main() and config.eval.ensemble is not None and config.train.calibration is not None:
        print("warning: with eval.ensemble scores stay uncalibrated: leave it or train.calibration out")
    return found


def check_surroundings(config: TrainConfig) -> None:
    """Check what a training needs besides its data: a place for its run folder, and the package that it logs with.

    Raises:
        ValueError: there is none.
    """
    nearest = next(folder for folder in (config.output, *config.output.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"output={config.output}: {nearest} is no folder that can be written to")
    if config.train.wandb is not None and find_spec("wandb") is None:
        raise ValueError(f"train.wandb={config.train.wandb} needs the package wandb: pip install wandb")


def latest_of_all_ranks(run: Path, *, strict: bool = False) -> Checkpoint | None:
    """The newest intact checkpoint of a run, the same on every rank; None if there is none.

    Raises:
        ValueError: as `latest`; or the ranks see different checkpoints.
    """
    with failing_together():
        found = latest(run, strict=strict)
    seen = gather(None if found is None else (found.folder.name, found.fingerprint()))
    if len(set(seen)) > 1:
        names = ", ".join("none" if checkpoint is None else checkpoint[0] for checkpoint in seen)
        raise ValueError(f"{run}: the ranks see different checkpoints ({names}); it has to be on a disk that all share")
    return found


def check_warmup(config: TrainConfig | AlignConfig) -> None:
    """Check that the warm-up ends within the run.

    Raises:
        ValueError: it does not.
    """
    if config.train.warmup_steps > config.train.steps:
        raise ValueError(
            f"train.warmup_steps is {config.train.warmup_steps}, more than train.steps, {config.train.steps}; for a "
            "short trial add train.warmup_steps=0"
        )


def check_divisible(config: TrainConfig) -> None:
    """Check that every rank gets as large a part of each batch.

    Raises:
        ValueError: it does not.
    """
    for name, number in samples_per_step(config)._asdict().items():
        if number % world_size():
            raise ValueError(
                f"a batch's {number} {name} (train.batch_size, data.pairs.share) cannot be divided among "
                f"{world_size()} ranks; start as many as divide it"
            )


@contextmanager
def open_run_folder(config: TrainConfig | AlignConfig, found: Checkpoint | None) -> Iterator[None]:
    """Make the run folder with its config, hold it for this run, and say what the run computes on.

    Args:
        found: the newest checkpoint there, seen before the folder was held.

    Raises:
        ValueError: another run is writing there or has written since, its config was written by hand, or a rank does
            not see the folder.
    """
    wait_for_all()  # until every rank has checked whether there is a run
    content, file = config.model_dump(mode="json"), config.output / "config.yaml"
    with ExitStack() as held:
        with failing_together():
            if is_main():
                if file.exists() and not _is_of_a_run(file):
                    raise ValueError(f"{file} was written by hand and would be replaced; keep it, or change output")
                config.output.mkdir(parents=True, exist_ok=True)
                held.enter_context(only_writer(config.output))
                _check_newest(config.output, found)
                with whole_file(file) as stream:
                    stream.write(yaml.safe_dump(content, sort_keys=False))
                ranks = f", one of {world_size()} ranks" if world_size() > 1 else ""
                print(f"{config.output}: {describe_machine(device_of_rank(config.train.device))}{ranks}")
        wait_for_all()
        with failing_together():
            if not file.exists():
                raise ValueError(f"{config.output}, which rank 0 made, is not there; it has to be on a shared disk")
        yield


def _check_newest(run: Path, found: Checkpoint | None) -> None:
    """Check that a checkpoint is the newest one, or that there is none.

    Raises:
        ValueError: another run has written one meanwhile.
    """
    newest = max((path.parent.name for path in run.glob(f"step-*/{MANIFEST}")), default=None)
    if newest == (None if found is None else found.folder.name):
        return
    now = latest(run)  # what is newer may be damaged
    if (None if now is None else now.folder) != (None if found is None else found.folder):
        raise ValueError(f"{run}: another run wrote {newest} there while this one started; start it again")


def _is_of_a_run(file: Path) -> bool:
    """Whether a config was written by a run of any version: in its form, which nobody else keeps to."""
    try:
        text = file.read_text(encoding="utf-8")
        written = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(written, dict) and yaml.safe_dump(written, sort_keys=False) == text


def check_same_run(
    stored: dict[str, Any], config: TrainConfig | AlignConfig, *, free: tuple[str, ...] = FREE_ON_RESUME
) -> None:
    """Check that a resume continues the same run. A setting that the run's version did not have counts as its default.

    Args:
        free: beginnings of the names of settings that may differ.

    Raises:
        ValueError: names every other setting that differs.
    """
    if isinstance(config, TrainConfig) and config.train.patience:  # it goes by evaluations of one set
        free = tuple(name for name in free if name not in _OF_EVALUATIONS)
    then = parse_config(stored, type(config), f"{config.output}, as it was started")
    before, now = flatten(then.model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    if different := differences(before, now, free=free):
        raise ValueError(
            f"{config.output} was started with other settings: {different}. Resume it with its own, which are in "
            f"{config.output}/config.yaml; {_other_start(then, config)}"
        )


def _other_start(then: TrainConfig | AlignConfig, config: TrainConfig | AlignConfig) -> str:
    """How to train with other settings than those of a run; nothing starts from the run of an expert.

    Args:
        then: config of the run.
    """
    if isinstance(config, TrainConfig) and isinstance(then, TrainConfig) and (config.expert or then.expert):
        return f"to train with these, keep init_from={config.init_from or then.init_from} and give another output"
    return f"to train on with these, start a run from it: init_from={config.output} and another output"


def sha256_of_start(config: TrainConfig) -> str | None:
    """The hash of the weights that a training starts from; None for CLIP's."""
    return None if config.init_from is None else sha256_of(weights_file(config.init_from))


def check_same_start(found: Checkpoint, config: TrainConfig) -> None:
    """Check that the detector that a run started from still has the same weights.

    Raises:
        ValueError: it was trained again.
    """
    before, now = found.notes.init_sha256, sha256_of_start(config)
    if before is not None and before != now:
        raise ValueError(
            f"{config.output} started from other weights than {config.init_from} has now (sha256 {before} and {now}); "
            "restore them, or give another output"
        )


def check_resumed(found: Checkpoint, config: TrainConfig, clip: Clip, data: Mapping[str, str]) -> None:
    """Check that all that a resumed run goes by is as it was, but for its settings (`check_same_run`).

    Args:
        data: fingerprints of its data, as they are now.

    Raises:
        ValueError: as `check_text_tower`, `check_same_data` and `check_same_start`.
    """
    check_text_tower(found, clip)
    check_same_data(found.notes.data, data, config.output)
    if config.train.start_distillation:
        check_same_start(found, config)


def check_same_data(stored: Mapping[str, str], data: Mapping[str, str], output: Path) -> None:
    """Check that a resume has the same data: otherwise images, their order and annotations would not be the run's.

    Args:
        stored: fingerprints in the checkpoint; empty in those of early versions.

    Raises:
        ValueError: names the data that changed.
    """
    different = [name for name, fingerprint in data.items() if stored.get(name, fingerprint) != fingerprint]
    if different:
        raise ValueError(
            f"{output} was started on other data: its {' and '.join(different)} changed since; restore the "
            "original data, or train on the data as it is now with another output"
        )
