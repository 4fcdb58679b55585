"""Train a detector on base classes. One loop, all of it visible: draw, predict, assign, lose, step, save, evaluate.

Under torchrun every rank runs the loop on its part of each batch; losses, gradients and what is saved are those of the
whole batch.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ovd.data.report import DataError, DataReport
from ovd.distributed import is_main, largest_over_ranks, rank, sum_over_ranks, wait_for_all, world_size
from ovd.engine import checkpoint
from ovd.engine.gate_statistics import gate_statistics
from ovd.engine.log import open_log
from ovd.engine.optim import (
    Ema,
    GroupSpec,
    LearningRateDecay,
    NonFiniteError,
    build_optimizer,
    check_finite,
    clip_gradients,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
)
from ovd.engine.signals import StopRequest
from ovd.engine.step_dump import write_step
from ovd.engine.step_texts import StepTexts, TextSampler
from ovd.model.assign import Rule as AssignmentRule
from ovd.model.assign import assign_atss, assign_fcos, assign_task_aligned
from ovd.model.backbone import Backbone
from ovd.model.detector import Detector
from ovd.model.federated import Rule
from ovd.model.gates import GatedProjection
from ovd.model.image_labels import image_label_loss
from ovd.model.losses import detection_losses, loss_normalizers
from ovd.model.similarity import initial_bias
from ovd.precision import autocast, memory_format
from ovd.structures import Assignment, Batch, Points, Predictions, Targets
from ovd.text.bank import TextBank
from ovd.text.pair_texts import PairTexts

EXIT_ON_SIGNAL = 143
FAILED_SAVES_SURVIVED = 2
GATE_INTERVAL = 50
"""Steps between looks at the gates, each of which costs another forward pass."""


@dataclass(frozen=True)
class Schedule:
    """The optimizer's and the loss's settings; each is explained in config.py."""

    steps: int
    seed: int
    learning_rate: float
    backbone_rate: float
    layer_decay: float
    gate_rate: float
    logit_rate: float
    weight_decay: float
    warmup_steps: int
    decay: LearningRateDecay
    clip_norm: float
    accumulate: int
    assignment: AssignmentRule
    atss_steps: int
    ema_decay: float
    compile: bool
    negatives: Rule
    sampled_classes: int
    text_noise: float
    sampled_texts: int
    pair_box_loss: bool
    """Whether boxes of image-text pairs teach the box branch, too."""
    image_label_weight: float
    """Of the loss of image-text pairs' texts as image-level labels; 0 leaves it out."""


@dataclass(frozen=True)
class Saving:
    """When to write what, and where."""

    run_dir: Path
    save_every: int
    keep_checkpoints: int
    eval_every: int
    """0: at the end only."""
    resolved_config: dict[str, Any]
    wandb: str | None = None
    """Project of Weights & Biases that gets the scalars, too."""
    first_samples: tuple[int, int] = (0, 0)
    """How many images of the detection data, and how many pairs, earlier stages had drawn; stored."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of what is trained on; stored."""


def build_groups(detector: Detector, schedule: Schedule) -> list[dict[str, Any]]:
    """Learning rates by part, as configured."""
    decay = schedule.weight_decay
    learned: list[nn.Module] = [detector.pyramid, detector.head]
    gated = [module for module in detector.modules() if isinstance(module, GatedProjection)]
    gates = [module.gate for module in gated]
    learned += [module.projection for module in gated]
    if detector.head_shortcut is not None:
        learned.append(detector.head_shortcut.filter)
    if not detector.gated:
        learned.append(detector.projection)
    return parameter_groups(
        detector,
        {
            **_backbone_groups(detector.backbone, schedule),
            "learned": GroupSpec(learned, weight_decay=decay),
            "gates": GroupSpec(gates, lr_factor=schedule.gate_rate),
            "logit": GroupSpec([detector.log_scale, detector.threshold], lr_factor=schedule.logit_rate),
        },
    )


def _backbone_groups(backbone: Backbone, schedule: Schedule) -> dict[str, GroupSpec]:
    """The backbone at one rate, or with layer-wise decay (BEiT, arXiv:2106.08254) a group for each of its layers."""
    rate, decay = schedule.backbone_rate, schedule.weight_decay
    if schedule.layer_decay == 1:
        return {"backbone": GroupSpec([backbone], lr_factor=rate, weight_decay=decay)}
    layers = [*backbone.layers(), backbone.projection_parameters()]
    return {
        f"backbone/{number}": GroupSpec(layer, rate * schedule.layer_decay ** (len(layers) - 1 - number), decay)
        for number, layer in enumerate(layers)
    }


def step_seed(seed: int, step: int) -> int:
    """All randomness of a step outside the loader comes from here, so that a resumed run repeats it."""
    return (seed * 1_000_003 + step) % 2**63


def step_generator(seed: int, step: int) -> torch.Generator:
    """For what is the same on every rank."""
    return torch.Generator().manual_seed(step_seed(seed, step))


def first_with_images(batches: Iterator[Batch], num_samples: int) -> Batch:
    """The first batch of which at least one image could be read, on any rank.

    Raises:
        DataError: too many images in a row could not, or none at all.
    """
    report = DataReport()
    for batch in batches:
        if int(sum_over_ranks(torch.tensor(len(batch.image_ids)))):
            return of_one_size(batch)
        report.add_batch(batch)
        report.raise_if_too_many(num_samples)
    raise DataError("F9", f"no image could be read; the last: {'; '.join(batch.skipped[:3])}")


def train(
    detector: Detector,
    batches_from: Callable[[int], Iterator[Batch]],
    bank: TextBank,
    image_counts: Int[Tensor, " C"],
    pair_texts: PairTexts | None = None,
    *,
    schedule: Schedule,
    saving: Saving,
    report: DataReport,
    num_samples: int,
    device: torch.device,
    low_precision: bool,
    evaluate: Callable[[Detector], dict[str, float]] | None,
    solve_bias: bool,
    go_on_from: checkpoint.Checkpoint | None = None,
    resume_from: checkpoint.Checkpoint | None,
) -> tuple[Detector, dict[str, float]]:
    """Train in place; returns the averaged (EMA) detector and its last evaluation.

    Args:
        batches_from: the batches from a step on, as a pure function of the step.
        bank: text variants of the training vocabulary, row by row.
        image_counts: training images per class of that vocabulary.
        pair_texts: the texts of image-text pairs, where the batches hold such.
        num_samples: images there are to train on, of the smaller source where there are two; too many of them left out
            stop the run.
        evaluate: called with the averaged detector in eval mode.
        solve_bias: set the logit bias from the first batch; for a detector that was not trained before.
        go_on_from: start with the weights, the average and the optimizer's moments of this checkpoint of another run.
        resume_from: continue from this checkpoint of the same run.

    Raises:
        NonFiniteError: a loss or gradient is not finite; nothing was stepped or saved after it.
        SystemExit: 143, after a checkpoint, when SIGTERM or SIGUSR1 came.
    """
    detector.to(device).to(memory_format=memory_format(low_precision)).train()
    optimizer = build_optimizer(build_groups(detector, schedule), lr=schedule.learning_rate)

    texts_of = TextSampler(
        bank=bank,
        image_counts=image_counts,
        rule=schedule.negatives,
        num_sampled=schedule.sampled_classes,
        noise=schedule.text_noise,
        pair_texts=pair_texts,
        num_sampled_texts=schedule.sampled_texts,
    )

    if resume_from is None and solve_bias:
        first = first_with_images(batches_from(0), num_samples)
        texts = texts_of.sample(first, step_generator(schedule.seed, 0)).to(device)
        set_initial_bias(detector, first.to(device), texts.embeddings, low_precision)
    ema = Ema(detector, schedule.ema_decay)
    start = 0
    if resume_from is not None:
        checkpoint.restore(resume_from, module=detector, optimizer=optimizer, ema=ema)
        start = resume_from.step
    elif go_on_from is not None:
        checkpoint.restore(go_on_from, module=detector, optimizer=optimizer, ema=ema)

    failed_saves = 0
    report_path = saving.run_dir / (f"data_report.rank{rank()}.json" if rank() else "data_report.json")
    if 0 < start < schedule.steps and report_path.exists():  # of an earlier start; it is kept
        earlier = (report_path.with_suffix(f".{number}.json") for number in count(1))
        report_path.replace(next(path for path in earlier if not path.exists()))

    def write_report() -> None:
        """Every rank its own: of the samples that it loaded since the run was last started."""
        report.write(report_path)

    def save(step: int, *, must_succeed: bool) -> None:
        """Write a checkpoint; a full disk is survived twice, unless this one `must_succeed`."""
        nonlocal failed_saves
        try:
            if is_main():
                checkpoint.save(
                    saving.run_dir,
                    step=step,
                    module=detector,
                    optimizer=optimizer,
                    config=saving.resolved_config,
                    ema=ema,
                    extra={
                        "text_tower": bank.text_tower,
                        "classes": list(bank.names),
                        "first_samples": list(saving.first_samples),
                        "data": saving.data,
                    },
                    keep=saving.keep_checkpoints,
                )
            write_report()
        except (checkpoint.SaveError, OSError) as error:
            failed_saves += 1
            if must_succeed or failed_saves > FAILED_SAVES_SURVIVED:
                raise
            log.message(f"warning: {error}")
        wait_for_all()

    averaged = copy.deepcopy(detector).eval()
    if schedule.compile:
        detector.compile_learned_path()
    parallel = in_parallel(detector, device)
    num_images = 1
    run_log = open_log(saving.run_dir, schedule.steps, start, wandb=saving.wandb, config=saving.resolved_config)
    with run_log as log, StopRequest() as stop:
        for step, batch in zip(range(start, schedule.steps), batches_from(start), strict=False):
            torch.manual_seed(step_seed(schedule.seed + rank(), step))  # for stochastic depth
            report.add_batch(batch)
            if batch.skipped:
                write_report()
                report.raise_if_too_many(num_samples)
            num_images = int(sum_over_ranks(torch.tensor(len(batch.image_ids))))
            if num_images == 0:
                log.message(f"step {step}: every sample was skipped ({batch.skipped[0]}); no optimizer step")
                continue
            batch = of_one_size(batch)
            texts = texts_of.sample(batch, step_generator(schedule.seed, step)).to(device)
            batch = batch.to(device)

            factor = learning_rate_factor(
                step, warmup_steps=schedule.warmup_steps, total_steps=schedule.steps, decay=schedule.decay
            )
            set_learning_rate(optimizer, factor)
            rule = assignment_rule(schedule, step)
            losses = backward(parallel, detector, batch, texts, schedule, rule, low_precision)
            gradient_norm = clip_gradients(detector.parameters(), schedule.clip_norm)
            try:
                check_finite(losses, gradient_norm, batch.image_ids)
            except NonFiniteError as error:
                dump = write_step(saving.run_dir, step, detector=detector, batch=batch, texts=texts, losses=losses)
                raise NonFiniteError(f"{error}; tools/replay_step.py {dump} shows which image") from None
            optimizer.step()
            optimizer.zero_grad()
            ema.update(detector)

            done = step + 1
            log.train(
                done,
                {name: loss.item() for name, loss in losses.items()},
                lr=schedule.learning_rate * factor,
                num_images=num_images,
            )
            last, stopping = done == schedule.steps, bool(largest_over_ranks(torch.tensor(int(stop.received))))
            if detector.gated and is_main() and (last or done % GATE_INTERVAL == 0):
                log.gates(done, gate_statistics(detector, batch.images, low_precision=low_precision))
            if last or stopping or done % saving.save_every == 0:
                save(done, must_succeed=last or stopping)
            if stopping and not last:
                log.message(f"stopped by a signal after step {done}; --resume goes on from there")
                raise SystemExit(EXIT_ON_SIGNAL)
            if evaluate and not last and saving.eval_every and done % saving.eval_every == 0:
                ema.copy_to(averaged)
                log.evaluation(done, evaluate(averaged))
        if num_images == 0:  # the last step was skipped whole
            save(schedule.steps, must_succeed=True)
        ema.copy_to(averaged)
        metrics = evaluate(averaged) if evaluate else {}
        if metrics:
            log.evaluation(schedule.steps, metrics)
    return averaged, metrics


def in_parallel(detector: Detector, device: torch.device) -> nn.Module:
    """The detector as every rank calls it, so that gradients are the mean over ranks; for one process, as it is."""
    if world_size() == 1:
        return detector
    return DistributedDataParallel(
        detector, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )


def of_one_size(batch: Batch) -> Batch:
    """The batch padded as if the ranks' batches were one; a rank without images gets a blank one, which no loss sees.

    So a step is the same for any number of ranks.
    """
    if world_size() == 1:
        return batch
    height, width = largest_over_ranks(torch.tensor(batch.images.shape[2:])).tolist()
    if not batch.image_ids:
        nothing = torch.zeros(0, dtype=torch.int64)
        blank = Targets(torch.zeros(0, 4), nothing, nothing, nothing, torch.zeros(0, 4))
        images, sizes = torch.zeros(1, 3, height, width, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int64)
        return replace(batch, images=images, sizes=sizes, targets=(blank,))
    images = F.pad(batch.images, (0, width - batch.images.shape[3], 0, height - batch.images.shape[2]))
    return replace(batch, images=images)


def backward(
    parallel: nn.Module,
    detector: Detector,
    batch: Batch,
    texts: StepTexts,
    schedule: Schedule,
    rule: AssignmentRule,
    low_precision: bool,
) -> dict[str, Tensor]:
    """Gradients of a step in `.grad` of the parameters, and the losses that they are of.

    The losses are those of all ranks' batches as one, taken `schedule.accumulate` parts at a time. What they are
    divided by is known from the annotations before the first part; where the assignment depends on predictions each
    part is divided by its own, and the parts are averaged.
    """
    points = detector.points(batch.images)
    names_only = batch.is_pair() & (not schedule.pair_box_loss)
    given, normalizers = None, None
    if rule != "task_aligned":
        given = (assign_atss if rule == "atss" else assign_fcos)(points, batch.targets, sizes=batch.sizes)
        normalizers = sum_over_ranks(loss_normalizers(given, batch.targets, names_only=names_only, points=points))
    num_pairs = int(sum_over_ranks(torch.tensor(batch.num_pairs)))
    sums: dict[str, Tensor] = {}
    least_images = -int(largest_over_ranks(torch.tensor(-len(batch.targets))))  # a rank may have skipped some
    num_parts = min(schedule.accumulate, least_images)
    bounds = [len(batch.targets) * part // num_parts for part in range(num_parts + 1)]
    for first, last in pairwise(bounds):
        rows = slice(first, last)
        part, its_texts = batch.of_images(rows), texts.of_images(rows)
        is_last = last == len(batch.targets)
        gathers = nullcontext() if is_last or not isinstance(parallel, DistributedDataParallel) else parallel.no_sync()
        with gathers:
            with autocast(batch.images.device, low_precision):
                predictions = parallel(part.images)
            if given is not None and normalizers is not None:
                assignment, divisors = given.of_images(rows), normalizers
            else:
                assignment = assign_task_aligned(
                    points,
                    part.targets,
                    predictions,
                    sizes=part.sizes,
                    text=its_texts.embeddings,
                    class_rows=its_texts.classes,
                    scale=detector.scale,
                    bias=detector.bias,
                )
                divisors = num_parts * sum_over_ranks(
                    loss_normalizers(assignment, part.targets, names_only=names_only[rows], points=points)
                )
            losses = losses_of(
                detector,
                predictions,
                assignment,
                part.targets,
                its_texts,
                names_only=names_only[rows],
                points=points,
                normalizers=divisors,
                use_compiled=schedule.compile,
            )
            if schedule.image_label_weight > 0:
                of_images = image_label_loss(
                    predictions,
                    part,
                    its_texts.classes,
                    its_texts.embeddings,
                    its_texts.of_pairs,
                    points,
                    detector.scale,
                    detector.bias,
                )
                losses["image"] = schedule.image_label_weight * of_images / max(1, num_pairs)
            # Ranks' gradients are averaged, and these losses are parts of a sum.
            (world_size() * torch.stack(list(losses.values())).sum()).backward()
        sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
    total = sum_over_ranks(torch.stack(list(sums.values())))
    return dict(zip(sums, total, strict=True))


def losses_of(
    detector: Detector,
    predictions: Predictions,
    assignment: Assignment,
    targets: tuple[Targets, ...],
    texts: StepTexts,
    *,
    names_only: Bool[Tensor, " B"],
    points: Points,
    normalizers: Float[Tensor, "3"],
    use_compiled: bool = False,
) -> dict[str, Tensor]:
    """`detection_losses` of predictions scored against a step's texts."""
    return detection_losses(
        predictions,
        assignment,
        targets,
        text=texts.embeddings,
        class_rows=texts.classes,
        class_mask=texts.mask,
        class_mask_in_boxes=texts.mask_in_boxes,
        names_only=names_only,
        points=points,
        normalizers=normalizers,
        scale=detector.scale,
        bias=detector.bias,
        use_compiled=use_compiled,
    )


def assignment_rule(schedule: Schedule, step: int) -> AssignmentRule:
    """That of a step: what depends on predictions waits until they mean something."""
    return "atss" if schedule.assignment == "task_aligned" and step < schedule.atss_steps else schedule.assignment


@torch.no_grad()
def set_initial_bias(detector: Detector, batch: Batch, text: Float[Tensor, "K D"], low_precision: bool) -> None:
    """Solve for the bias at which the mean class probability over the first batch is 0.01 (RetinaNet's prior)."""
    with autocast(batch.images.device, low_precision):
        predictions = detector(batch.images)
    centers = detector.points(batch.images).centers
    inside = (centers[None] < batch.sizes.flip(1)[:, None]).all(dim=2)
    detector.set_bias(initial_bias(predictions.embeddings[inside], text, scale=detector.scale.item()))
