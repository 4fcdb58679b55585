"""Checks that a training can run at all, made before any of its data is read."""

import os
from importlib.util import find_spec
from pathlib import Path

from ovd.build.batches import samples_per_step
from ovd.config.alignment import AlignConfig
from ovd.config.training import TrainConfig
from ovd.distributed import is_main, world_size
from ovd.extras import needs_package
from ovd.warn import warn


def check_prerequisites(config: TrainConfig) -> None:
    """Check what a training needs besides its data, and warn of settings that hardly anyone wants.

    Raises:
        ValueError: the warm-up is longer than the run, a batch cannot be divided among the ranks, the run folder or the
            folder of text banks cannot be written to, or the package for logging is missing.
    """
    check_warmup(config)
    _check_divisible(config)
    _check_surroundings(config)
    if not is_main():
        return
    if config.clip.weights == "random":
        warn("clip.weights=random: this CLIP model is untrained, so a detector cannot learn from it; set clip.weights")
    if config.eval.ensemble is not None and config.train.calibration is not None:
        warn("with eval.ensemble, scores are not calibrated; remove eval.ensemble or train.calibration")


def check_warmup(config: TrainConfig | AlignConfig) -> None:
    """Check that the warm-up ends within the run.

    Raises:
        ValueError: the warm-up is longer than the run.
    """
    if config.train.warmup_steps > config.train.steps:
        raise ValueError(
            f"train.warmup_steps is {config.train.warmup_steps}, more than train.steps, {config.train.steps}; for a "
            "short trial, set train.warmup_steps=0"
        )


def _check_divisible(config: TrainConfig) -> None:
    """Check that each batch can be divided evenly among the ranks.

    Raises:
        ValueError: it cannot.
    """
    for name, number in samples_per_step(config)._asdict().items():
        if number % world_size():
            raise ValueError(
                f"the {number} {name} of a batch (train.batch_size, data.pairs.share) cannot be divided among "
                f"{world_size()} ranks; start a number of ranks that divides it"
            )


def _check_surroundings(config: TrainConfig) -> None:
    """Check that run folder and text bank can be written, and that the package for logging is installed.

    Raises:
        ValueError: a folder cannot be written to, or `train.wandb` is set and wandb is missing.
    """
    _check_writable("output", config.output)
    cache = config.bank.cache
    if config.bank.file is None and not cache.is_dir():  # an existing one may already hold the bank
        _check_writable("bank.cache", cache)
    if config.train.wandb is not None and find_spec("wandb") is None:
        raise ValueError(f"train.wandb={config.train.wandb} {needs_package('wandb', 'wandb')}")


def _check_writable(key: str, folder: Path) -> None:
    """Check that a folder can be written to, or made.

    Raises:
        ValueError: it cannot; the message names the key of the config.
    """
    parents = (folder, *folder.absolute().parents)
    nearest = next(path for path in parents if path.exists() or path.is_symlink())  # a broken link is no folder
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"{key}={folder}: {nearest} is not a folder, or cannot be written to")
