"""Train a detector in one explicit loop: load, predict, assign, compute the losses, step, save, evaluate.

The gradients of a batch are computed in step.py. Under torchrun every rank runs the loop on its part of each batch;
losses, gradients and checkpoints are those of the whole batch.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import assert_never

import torch
from torch import nn

from ovd.config.training import TrainSection
from ovd.data.report import DataReport
from ovd.distributed import (
    data_parallel,
    device_of_rank,
    is_main,
    on_any_rank,
    raise_on_all_ranks,
    rank,
    sum_over_ranks,
)
from ovd.engine import checkpoint
from ovd.engine.batches import count_samples, first_nonempty_batch, until_stopped
from ovd.engine.checkpoint_writer import CheckpointWriter
from ovd.engine.detector_groups import build_groups
from ovd.engine.early_stop import EarlyStop, is_early_stop_over
from ovd.engine.ema import Ema
from ovd.engine.gate_statistics import gate_statistics
from ovd.engine.graphed import GraphedDetector, can_be_graphed
from ovd.engine.log import NoLog, RunLog, open_log
from ovd.engine.optim import (
    NonFiniteError,
    build_optimizer,
    check_finite,
    gradient_norm,
    learning_rate_factor,
    set_learning_rate,
    step_if_finite,
)
from ovd.engine.signals import Stopped, StopRequest, exit_stopped
from ovd.engine.start import Fresh, InitFromTrainingState, Resume, Start
from ovd.engine.step import Criterion, backward, pad_to_common_size, set_initial_bias
from ovd.engine.step_dump import StepDump
from ovd.engine.step_texts import TextSampler
from ovd.engine.train_state import DetectorState
from ovd.model.detector import Detector
from ovd.precision import Compute
from ovd.structures import Batch

Evaluate = Callable[[Detector, StopRequest | None], dict[str, float]]
"""Function that evaluates a detector and returns its metrics, the same on every rank.

It raises `Stopped` if a stop is requested meanwhile.
"""
Calibrate = Callable[[Detector, StopRequest], None]
"""Function that calibrates a detector on all ranks, for its last checkpoint; it raises as an `Evaluate` does."""
GATE_INTERVAL = 50
"""Steps between measurements of the gates, each of which takes an additional forward pass."""


@dataclass(frozen=True)
class TrainingData:
    """The batches and texts of a training."""

    batches_from: Callable[[int], Iterator[Batch]]
    """Pure function that returns the batches from a given step on."""
    text_sampler: TextSampler
    num_samples: int
    """Number of images, in the smaller source if there are two; the run stops if too many of them are left out."""
    report: DataReport
    """Counts of the samples that were used and left out."""


def train(
    detector: Detector,
    data: TrainingData,
    criterion: Criterion,
    start: Start,
    checkpoints: CheckpointWriter,
    *,
    evaluate: Evaluate | None,
    calibrate: Calibrate | None = None,
) -> dict[str, float]:
    """Train a detector in place.

    Args:
        criterion: the losses; its `train` section has the settings of the loop as well.
        start: initial weights and first step of the run.
        evaluate: called with the averaged detector in eval mode.
        calibrate: called with the averaged detector before the last checkpoint, which it may add to; it raises
            `Stopped` if a stop is requested meanwhile.

    Returns:
        The metrics of the last evaluation of the averaged (EMA) detector; empty without `evaluate`. With
        `train.patience` the run may end before its last step, with the averaged weights of its best evaluation.

    Raises:
        NonFiniteError: a loss or gradient is not finite; the optimizer step was skipped and nothing is saved.
        SystemExit: 143, after a checkpoint, on SIGTERM, SIGUSR1, SIGHUP or Ctrl-C. A running evaluation or calibration
            is aborted and repeated when the run is resumed; evaluations that `train.patience` compares are finished.
    """
    settings = criterion.train
    compute = Compute.configured(settings.precision, device_of_rank(settings.device))
    compute.place(detector).train()
    state = build_initial_state(detector, data, settings, start, compute)
    num_steps_left = 0 if is_early_stop_over(checkpoints.notes) else settings.steps - state.step
    is_finished = num_steps_left == 0 and not checkpoints.notes.is_calibration_pending
    if state.step > 0 and not is_finished:
        checkpoints.rotate_report()
    averaged = copy.deepcopy(detector).eval()
    if settings.compile:
        detector.compile_learned_path()
    forward = _wrap_detector(detector, settings, compute)
    early_stop = EarlyStop(settings.patience, checkpoints) if settings.patience else None
    with raise_on_all_ranks():
        run_log = open_log(checkpoints.run_dir, settings.steps, state.step, settings.wandb, checkpoints.config)
    with run_log as log, StopRequest() as stop:
        evaluation = None if evaluate is None else _Evaluation(evaluate, state, averaged, log)
        if evaluation and early_stop is None and num_steps_left and _is_evaluation_missing(state.step, settings, log):
            evaluation.run_until(stop, state.step)
        remaining = islice(data.batches_from(state.step), num_steps_left)
        is_over = num_steps_left == 0
        for batch in until_stopped(count_samples(remaining, data.report, data.num_samples, checkpoints), stop):
            num_images = int(sum_over_ranks(torch.tensor(len(batch.image_ids))))
            if num_images == 0:
                log.message(f"step {state.step}: every sample was skipped ({batch.skipped[0]}); no optimizer step")
                state.step += 1
            else:
                rate = settings.learning_rate * update_learning_rate(state, settings)
                losses, batch = train_step(state, forward, batch, data.text_sampler, criterion, checkpoints.run_dir)
                log.train(state.step, losses, lr=rate, num_images=num_images)
                _log_gates(state, batch, settings, log, compute)
            is_over = state.step == settings.steps
            is_evaluated = _is_evaluated(state.step, settings)
            if evaluation and early_stop is not None and (is_over or is_evaluated):  # before its checkpoint is saved
                early_stop.record_evaluation(state.step, stop.finish(partial(evaluation.run, state.step)), state.ema)
                if is_over := is_over or early_stop.should_stop:
                    log.message(early_stop.restore_best(state.ema))
            if is_over:
                break
            if state.step % settings.save_every == 0:
                checkpoints.save(state, data.report, must_succeed=False, warning=log.warning)
            if evaluation and early_stop is None and is_evaluated:  # after the checkpoint, since it may take long
                evaluation.run_until(stop, state.step)
        if not is_finished:
            if is_over and calibrate:
                is_over = _calibrate(calibrate, averaged, state, stop, checkpoints)
            checkpoints.save(state, data.report, must_succeed=True, warning=log.warning)
        last_step = early_stop.best_step if early_stop and is_over else state.step
        metrics = {} if evaluation is None else evaluation.run_until(stop, last_step)
        if metrics is None or not is_over:
            exit_stopped(state.step, log.message)
        return metrics


@dataclass(frozen=True)
class _Evaluation:
    """The evaluation of a training's averaged weights."""

    evaluate: Evaluate
    state: DetectorState
    averaged: Detector
    """Detector in eval mode that the averaged weights are copied into."""
    log: RunLog | NoLog

    def run(self, step: int, stop: StopRequest | None = None) -> dict[str, float]:
        """Evaluate the averaged weights and log the metrics under `step`.

        Args:
            step: the current step, or that of the best evaluation if the run ends with its best weights.

        Raises:
            Stopped: a stop was requested.
        """
        self.state.ema.copy_to(self.averaged)
        metrics = self.evaluate(self.averaged, stop)
        self.log.evaluation(step, metrics)
        return metrics

    def run_until(self, stop: StopRequest, step: int) -> dict[str, float] | None:
        """Call `run`; return None if a stop was requested before the evaluation or during it."""
        try:
            return None if on_any_rank(stop.received) else self.run(step, stop)
        except Stopped:
            return None


def _calibrate(
    calibrate: Calibrate, averaged: Detector, state: DetectorState, stop: StopRequest, checkpoints: CheckpointWriter
) -> bool:
    """Calibrate the averaged weights, for the last checkpoint; return False if a stop was requested meanwhile."""
    state.ema.copy_to(averaged)
    try:
        calibrate(averaged, stop)
        is_pending = False
    except Stopped:
        is_pending = True
    checkpoints.notes = replace(checkpoints.notes, is_calibration_pending=is_pending)
    return not is_pending


def _wrap_detector(detector: Detector, settings: TrainSection, compute: Compute) -> nn.Module:
    """Wrap the detector for the training steps: in CUDA graphs if configured and possible, else by `data_parallel`."""
    if settings.cuda_graphs and not settings.compile and can_be_graphed(detector, accumulate=settings.accumulate):
        return GraphedDetector(detector, compute)
    return data_parallel(detector, compute.device)


def _is_evaluated(step: int, settings: TrainSection) -> bool:
    return settings.eval_every > 0 and step % settings.eval_every == 0


def _is_evaluation_missing(step: int, settings: TrainSection, log: RunLog | NoLog) -> bool:
    """Whether the step that the run resumes from should have been evaluated, but the run was stopped before."""
    is_missing = step > 0 and _is_evaluated(step, settings) and not log.has_evaluation(step)
    return on_any_rank(is_missing)


def _log_gates(
    state: DetectorState, batch: Batch, settings: TrainSection, log: RunLog | NoLog, compute: Compute
) -> None:
    """Log `gate_statistics` on the main process, every `GATE_INTERVAL` steps and after the last step."""
    is_due = state.step % GATE_INTERVAL == 0 or state.step == settings.steps
    if state.module.is_gated and is_main() and is_due:
        log.gates(state.step, gate_statistics(state.module, batch.images, compute))


def build_initial_state(
    detector: Detector, data: TrainingData, settings: TrainSection, start: Start, compute: Compute
) -> DetectorState:
    """Build the training state before the first step; a `start` may solve for the bias or restore a checkpoint.

    The detector must be on its device, in train mode.
    """
    optimizer = build_optimizer(build_groups(detector, settings), lr=settings.learning_rate)
    if isinstance(start, Fresh) and start.solve_bias:
        first = first_nonempty_batch(data.batches_from(0), data.num_samples)
        texts = data.text_sampler.sample(first, step_generator(settings.seed, 0)).to(detector.device)
        set_initial_bias(detector, first.to(detector.device), texts.embeddings, compute)
    state = DetectorState(detector, optimizer, Ema(detector, settings.ema_decay))
    match start:
        case Fresh():
            pass
        case InitFromTrainingState(found):
            checkpoint.restore(found, state)
        case Resume(found):
            checkpoint.restore(found, state)
            state.step = found.step
        case _:
            assert_never(start)
    return state


def train_step(
    state: DetectorState,
    forward: nn.Module,
    batch: Batch,
    text_sampler: TextSampler,
    criterion: Criterion,
    run_dir: Path,
) -> tuple[dict[str, float], Batch]:
    """Take one optimizer step; return its losses and the batch on the detector's device.

    Args:
        forward: the detector, wrapped as for `backward`.
        run_dir: folder for the dump of a step whose losses or gradients are not finite.

    Raises:
        NonFiniteError: a loss or gradient is not finite; names the dump.
    """
    settings, detector, step = criterion.train, state.module, state.step
    compute = Compute.configured(settings.precision, detector.device)
    torch.manual_seed(step_seed(settings.seed + rank(), step))  # for stochastic depth
    batch = pad_to_common_size(batch)
    texts = text_sampler.sample(batch, step_generator(settings.seed, step)).to(detector.device)
    batch = batch.to(detector.device)
    losses = backward(forward, detector, batch, texts, criterion, step=step, compute=compute)
    norm = gradient_norm(detector.parameters())
    losses_and_norm = step_if_finite(state.optimizer, losses, norm, max_norm=settings.clip_norm)
    state.optimizer.zero_grad()
    state.ema.update(detector)
    try:
        by_name = check_finite(losses, losses_and_norm, batch.image_ids)
    except NonFiniteError as error:
        try:
            loss_values = {name: loss.item() for name, loss in losses.items()}
            dump = StepDump(step, detector.state_dict(), batch, texts, loss_values).write(run_dir)
        except OSError as disk_error:
            raise NonFiniteError(f"{error}; the step could not be saved for ovd replay-step ({disk_error})") from None
        raise NonFiniteError(f"{error}; run `ovd replay-step {dump}` to find the image") from None
    state.step += 1
    return by_name, batch


def update_learning_rate(state: DetectorState, settings: TrainSection) -> float:
    """Set the optimizer's learning rates for the next step; return their factor of the peak rates."""
    factor = learning_rate_factor(
        state.step, warmup_steps=settings.warmup_steps, total_steps=settings.steps, decay=settings.decay
    )
    set_learning_rate(state.optimizer, factor)
    return factor


def step_seed(seed: int, step: int) -> int:
    """Return the seed of all random numbers of a step outside the loader, so that a resumed run repeats them."""
    return (seed * 1_000_003 + step) % 2**63


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return a generator for those random numbers of a step that are the same on every rank."""
    return torch.Generator().manual_seed(step_seed(seed, step))
