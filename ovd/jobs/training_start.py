"""The start of a training, and the number of samples that earlier stages have drawn."""

from dataclasses import dataclass
from pathlib import Path

from ovd.build.batches import samples_drawn
from ovd.build.learner import Learner
from ovd.build.trained import check_text_tower, find_checkpoint, initialize, stored_config
from ovd.config.training import TrainConfig, TrainSection
from ovd.distributed import is_main
from ovd.engine.checkpoint import Checkpoint, restore
from ovd.engine.detector_groups import build_groups
from ovd.engine.ema import Ema
from ovd.engine.notes import NO_SAMPLES, SampleCounts
from ovd.engine.optim import build_optimizer
from ovd.engine.start import Fresh, InitFromTrainingState, Resume, Start
from ovd.engine.train_state import DetectorState
from ovd.files import sha256_of
from ovd.model.detector import Detector
from ovd.warn import warn


@dataclass(frozen=True)
class ChosenStart:
    """The start of a training, and where it comes from."""

    start: Start
    first_samples: SampleCounts
    """Numbers of samples that earlier stages have drawn."""
    weights: Path | None = None
    """Weights file of another run that a new run starts from."""

    def init_sha256(self) -> str | None:
        """Return the SHA-256 of the weights of another run that the run started from; None for CLIP's weights."""
        if isinstance(self.start, Resume):
            return self.start.checkpoint.notes.init_sha256
        return None if self.weights is None else sha256_of(self.weights)


def choose_start(config: TrainConfig, found: Checkpoint | None, learner: Learner) -> ChosenStart:
    """Choose the start of a training; with `init_state: averaged`, load the weights of `init_from`.

    Args:
        found: the checkpoint that the run resumes from; None for a new run.

    Raises:
        ValueError: `init_from` has no fitting weights or training state, or they come from another text tower.
    """
    if found is not None:
        return ChosenStart(Resume(found), found.notes.first_samples)
    if config.init_from is None:
        return ChosenStart(Fresh(), NO_SAMPLES)
    if config.init_state == "training":
        before = find_checkpoint(config.init_from)
        check_text_tower(before, learner.clip)
        _check_state_fits(before, learner.detector, config.train)
        _warn_of_seen_images(config, before)
        return ChosenStart(InitFromTrainingState(before), samples_drawn(before), before.weights)
    weights = initialize(learner.detector, config.init_from, learner.clip)
    return ChosenStart(Fresh(solve_bias=False), NO_SAMPLES, weights)


def _check_state_fits(before: Checkpoint, detector: Detector, settings: TrainSection) -> None:
    """Check that the training state of another run fits a detector, whose weights are replaced by that run's.

    Raises:
        ValueError: as `restore`.
    """
    optimizer = build_optimizer(build_groups(detector, settings), lr=settings.learning_rate)
    restore(before, DetectorState(detector, optimizer, Ema(detector, settings.ema_decay)))


def _warn_of_seen_images(config: TrainConfig, before: Checkpoint) -> None:
    """Warn if an earlier stage was trained on images of the same data that this one holds out for its calibration."""
    options = config.train.calibration
    if options is None or not is_main():
        return
    earlier = stored_config(before)
    earlier_options = earlier.train.calibration
    held_out = earlier.data.held_out if earlier_options is None else earlier_options.images
    if held_out < options.images and earlier.data.source == config.data.source:
        warn(
            f"{config.init_from} was trained on images that train.calibration holds out in this run; train it with "
            f"data.held_out={options.images}"
        )
