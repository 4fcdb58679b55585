"""Training with region distillation: its loss, its frozen teacher, and the other losses, which stay the same."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_files import losses_of, tensors_of
from small_run import small_config

from ovd.build.batches import training_batches
from ovd.build.crops import build_region_teacher
from ovd.build.data import load_training_index
from ovd.build.detector import build_detector, load_configured_clip
from ovd.clip.load import TINY_CLIP, Clip
from ovd.config.training import ClipConfig, TrainConfig
from ovd.data.report import DataReport
from ovd.engine.notes import NO_SAMPLES
from ovd.engine.step import BatchPart, Criterion, backward, set_initial_bias
from ovd.engine.step_dump import StepDump
from ovd.engine.step_texts import StepTexts
from ovd.fault import Fault
from ovd.jobs.replay_step import replay_step
from ovd.jobs.train import train_from_config
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.crop_encoder import CropEncoder
from ovd.model.detector import Detector
from ovd.model.losses import detection_losses
from ovd.precision import Compute
from ovd.structures import Batch
from ovd.text.encoder import encode_classes

STEPS = 2
CPU = torch.device("cpu")
FLOAT32 = Compute(CPU, low_precision=False)


def distilling(output: Path, world: Path, **changes) -> TrainConfig:
    options = changes.pop("region_distillation", {})
    return small_config(output, world, train={"region_distillation": options, **changes.pop("train", {})}, **changes)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, miniature_world) -> Path:
    run = tmp_path_factory.mktemp("distilled") / "run"
    train_from_config(distilling(run, miniature_world, train={"steps": STEPS}), evaluate=False)
    return run


def test_the_log_has_the_loss_and_the_checkpoint_nothing_of_the_teacher(reference, miniature_world):
    logged = losses_of(reference)
    assert len(logged) == STEPS
    assert all(list(losses) == ["class", "box", "quality", "distill"] for losses in logged)
    assert all(0 < losses["distill"] < 1 for losses in logged)
    config = distilling(reference, miniature_world)
    clip = load_configured_clip(config.clip)
    fresh = build_detector(config, clip)
    saved = tensors_of(reference / f"step-{STEPS:06d}")
    shapes = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    for kind in ("model", "ema"):
        assert {name: tensor.shape for name, tensor in saved[kind].items()} == shapes
    num_trained = sum(parameter.numel() for parameter in fresh.parameters() if parameter.requires_grad)
    moments = [tensor for name, tensor in saved["optimizer"].items() if "exp_avg_sq" in name]
    assert sum(tensor.numel() for tensor in moments) == num_trained


def teacher_of(config: TrainConfig, clip: Clip) -> CropEncoder:
    teacher = build_region_teacher(config, clip, FLOAT32)
    assert teacher is not None
    return teacher


class Step:
    """A detector, a batch of four images and its texts, and a criterion."""

    def __init__(self, world: Path, output: Path):
        self.config = distilling(output, world, train={"batch_size": 4})
        index = load_training_index(self.config, DataReport())
        self.batch: Batch = next(training_batches(self.config, index, first_samples=NO_SAMPLES, size_divisor=128)(0))
        torch.manual_seed(0)
        clip = load_configured_clip(self.config.clip)
        names = [category.name for category in index.categories]
        rows = encode_classes(clip, names, ("{}",))
        mask = torch.ones(4, len(rows), dtype=torch.bool)
        self.texts = StepTexts(torch.arange(len(rows)), rows, mask, mask, torch.zeros(len(rows), dtype=torch.bool))
        self.teacher = teacher_of(self.config, clip)
        self.detector: Detector = build_detector(self.config, clip).train()
        set_initial_bias(self.detector, self.batch, rows, FLOAT32)

    def losses(self, rows: slice = slice(None), **train) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """Return the losses and gradients for the images in `rows`."""
        section = self.config.train.model_copy(update=train)
        criterion = Criterion(section, None, self.teacher if section.region_distillation else None)
        self.detector.zero_grad()
        part, texts = self.batch.of_images(rows), self.texts.of_images(rows)
        losses = backward(self.detector, self.detector, part, texts, criterion, step=0, compute=FLOAT32)
        gradients = {name: p.grad.clone() for name, p in self.detector.named_parameters() if p.grad is not None}
        return {name: loss.item() for name, loss in losses.items()}, gradients


@pytest.fixture(scope="module")
def step(tmp_path_factory, miniature_world) -> Step:
    return Step(miniature_world, tmp_path_factory.mktemp("step") / "run")


@pytest.mark.parametrize("low_precision", [False, True])
def test_the_class_loss_has_the_precision_of_the_step(step, monkeypatch, low_precision):
    given = []

    def watched(*arguments, **options):
        given.append(options["low_precision"])
        return detection_losses(*arguments, **options)

    monkeypatch.setattr("ovd.engine.step.detection_losses", watched)
    criterion = Criterion(step.config.train.model_copy(update={"region_distillation": None}), None)
    compute = Compute(CPU, low_precision)
    backward(step.detector, step.detector, step.batch, step.texts, criterion, step=0, compute=compute)
    assert given == [low_precision]


def test_parts_of_a_batch_each_have_their_own_mean(step):
    parts = [step.losses(rows)[0]["distill"] for rows in (slice(0, 1), slice(1, 3))]
    in_parts, _ = step.losses(slice(0, 3), accumulate=2)
    assert in_parts["distill"] == pytest.approx(sum(parts) / 2, rel=1e-4)
    whole, _ = step.losses(slice(0, 3))
    assert whole["distill"] != pytest.approx(in_parts["distill"], rel=1e-3)  # in one part, one mean over all points


def test_the_loss_grows_with_its_weight_and_adds_to_the_gradient(step):
    plain, without = step.losses(region_distillation=None)
    once, gradients = step.losses()
    options = step.config.train.region_distillation.model_copy(update={"weight": 1.5})
    thrice, more = step.losses(region_distillation=options)
    assert thrice["distill"] == pytest.approx(3 * once.pop("distill"))
    assert once == plain  # all other losses are equal to the bit
    name = next(key for key in gradients if key.startswith("shortcuts") and key.endswith("projection.weight"))
    assert not torch.equal(gradients[name], without[name])
    torch.testing.assert_close(more[name] - without[name], 3 * (gradients[name] - without[name]), atol=1e-5, rtol=1e-2)


def test_a_step_without_a_kept_box_has_the_loss_zero_and_the_others_gradient(step):
    options = step.config.train.region_distillation.model_copy(update={"min_score": 1.0})
    losses, gradients = step.losses(region_distillation=options)
    assert losses["distill"] == 0
    plain, without = step.losses(region_distillation=None)
    assert {**plain, "distill": 0.0} == losses
    assert gradients.keys() == without.keys()
    assert all(torch.equal(gradient, without[name]) for name, gradient in gradients.items())


def test_a_blank_image_of_a_rank_without_images_has_no_region(step):
    blank = Batch.without_pairs(
        torch.zeros(1, 3, 128, 128, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int64), step.batch.targets[:1], ()
    )
    texts, points = step.texts.of_images(slice(0, 1)), step.detector.points(blank.images)
    classifier = step.detector.classifier(texts.embeddings, texts.class_ids)
    part = BatchPart(blank, texts, step.detector(blank.images), points, classifier, FLOAT32)
    criterion = Criterion(step.config.train, None, step.teacher)
    matching = criterion.match_by_annotations(points, blank, step=0)
    assert matching is not None
    assert criterion.losses(part, matching)["distill"].item() == 0


def assert_original(teacher: CropEncoder) -> None:
    """Check that a teacher's trunk and projection are those of the tiny CLIP as loaded."""
    original = backbone_from_visual(load_configured_clip(ClipConfig()).model.visual).state_dict()
    held = teacher.backbone.state_dict()
    assert held.keys() == original.keys()
    assert [name for name, tensor in original.items() if not torch.equal(held[name].cpu(), tensor)] == []


def test_the_teacher_shares_no_weight_with_the_detector(step):
    owned = {parameter.data_ptr() for parameter in step.detector.parameters()}
    assert not owned & {parameter.data_ptr() for parameter in step.teacher.backbone.parameters()}
    assert not any(parameter.requires_grad for parameter in step.teacher.backbone.parameters())
    assert_original(step.teacher)


def test_a_run_from_a_trained_detector_has_the_original_clip_as_its_teacher(
    reference, tmp_path, miniature_world, monkeypatch
):
    seen = []

    def build(config: TrainConfig, clip: Clip, compute: Compute) -> CropEncoder | None:
        seen.append(build_region_teacher(config, clip, compute))
        return seen[-1]

    monkeypatch.setattr("ovd.build.learner.build_region_teacher", build)
    onward = {"train": {"steps": 1, "warmup_steps": 0}, "init_from": str(reference)}
    train_from_config(distilling(tmp_path / "run", miniature_world, **onward), evaluate=False)
    (teacher,) = seen
    assert teacher is not None
    assert_original(teacher)


def test_a_dump_that_a_full_disk_cuts_short_is_an_error_of_the_disk(step, tmp_path):
    """A dump that a full disk cuts short raises an error about the disk; torch's own error would hide the one that the
    dump was written for."""
    dump = StepDump(0, {"weight": torch.zeros(100_000)}, step.batch, step.texts, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"failed-step-000000\.rank0\.pt cannot be written; the disk may be full"):
            dump.write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_replayed_step_shows_the_loss_of_each_image(step, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(json.dumps(step.config.model_dump(mode="json")))
    losses, _ = step.losses()
    faults = (Fault("F9", "a.png: cannot be decoded"),)
    batch = replace(step.batch, skipped=faults)
    dump = StepDump(0, step.detector.state_dict(), batch, step.texts, losses).write(tmp_path)
    assert StepDump.read(dump).batch.skipped == faults
    replay_step(dump)
    lines = capsys.readouterr().out.splitlines()
    assert f"distill {losses['distill']:.4g}" in lines[0]
    for row, line in enumerate(lines[2:]):
        alone, _ = step.losses(slice(row, row + 1))
        shown = float(line.split("distill ")[1].split(";")[0])
        assert shown == pytest.approx(alone["distill"], rel=2e-3)


def test_a_criterion_has_a_teacher_exactly_if_it_distills(step):
    with pytest.raises(ValueError, match=r"a teacher .* must be given if and only if train\.region_distillation"):
        Criterion(step.config.train, None)
    plain = step.config.train.model_copy(update={"region_distillation": None})
    with pytest.raises(ValueError, match="if and only if"):
        Criterion(plain, None, step.teacher)


def test_the_side_of_a_crop_is_configured_or_clips_own(tmp_path, miniature_world, tiny_clip):
    def side(**options) -> int:
        return teacher_of(distilling(tmp_path / "run", miniature_world, **options), tiny_clip).views[0].side_px

    assert side() == 64
    assert side(clip={"name": str(TINY_CLIP)}) == 64  # the side comes from the model, not from its name
    assert side(region_distillation={"crop": 48}) == 48
    with pytest.raises(
        ValueError,
        match=r"region_distillation\.crop and .*give crops of 50 px; .*multiple of 16",
    ):
        side(region_distillation={"crop": 50})
    plain = small_config(tmp_path / "run", miniature_world)
    assert build_region_teacher(plain, tiny_clip, FLOAT32) is None
