"""Alignment of a backbone as a user runs it: interrupted, on two ranks, on damaged folders, for every family."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_files import assert_same_tensors, losses_of
from safetensors.torch import load_file
from small_alignment import small_align_config, write_clip_folder, write_images
from small_backbones import AVERAGE_POOLING, FAMILIES, SLOW, dense_and_pooled_of_a_constant_map

import ovd.alignment.data
from ovd.alignment.data import alignment_data
from ovd.alignment.losses import DenseFeature
from ovd.alignment.train import align
from ovd.build.alignment import build_distillation, load_unlabeled_images
from ovd.build.detector import load_configured_clip
from ovd.clip.load import TINY_CLIP, load_clip
from ovd.clip.save import copy_clip, save_aligned
from ovd.data.report import DataError, DataReport
from ovd.engine.notes import Notes
from ovd.jobs.align_backbone import align_backbone, format_report
from ovd.model.backbone import Backbone
from ovd.model.backbone_families import backbone_from_visual
from ovd.structures import Batch
from ovd.text.encoder import text_tower_fingerprint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("align") / "images")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, images) -> Path:
    """An uninterrupted alignment of the tiny CLIP."""
    run = tmp_path_factory.mktemp("whole") / "run"
    align_backbone(small_align_config(run, images, train={"keep_checkpoints": 9}), command="a test")
    return run


def assert_same_bits(run: Path, other: Path) -> None:
    for name in ("step-000006/model.safetensors", "step-000006/optimizer.safetensors", "open_clip_model.safetensors"):
        assert_same_tensors(load_file(run / name), load_file(other / name))


def test_the_result_is_a_clip_model_and_a_report(whole_run, tiny_clip):
    aligned = load_clip(str(whole_run))
    assert text_tower_fingerprint(aligned) == text_tower_fingerprint(tiny_clip)
    before, after = tiny_clip.model.visual.state_dict(), aligned.model.visual.state_dict()
    assert not torch.equal(after["head.proj.weight"], before["head.proj.weight"])
    assert not torch.equal(after["trunk.stem.0.0.weight"], before["trunk.stem.0.0.weight"])
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert statistics
    assert all(torch.equal(after[name], before[name]) for name in statistics)
    report = json.loads((whole_run / "report.json").read_text())
    assert report["command"] == "a test"
    assert report["config"]["train"]["steps"] == 6
    assert report["images"] == 12
    assert report["losses_after"]["point"] < report["losses_before"]["point"]
    assert report["losses_after"]["box"] < report["losses_before"]["box"]
    assert "center of a box" in format_report(report)
    assert "training images" in format_report(report)  # twelve images are too few to hold any out
    assert "held-out images" in format_report({**report, "held_out_images": 3})


def test_mean_of_the_dense_feature_still_is_the_pooled_embedding(whole_run):
    model = load_clip(str(whole_run)).model
    pixels = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense, pooled = backbone_from_visual(model.visual).dense(pixels), model.encode_image(pixels)
    torch.testing.assert_close(dense.mean((2, 3)), pooled, atol=1e-5 * float(pooled.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_run_ends_with_the_same_bits(whole_run, images, step, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(whole_run / f"step-{step:06d}", run / f"step-{step:06d}")
    shutil.copyfile(whole_run / "metrics.jsonl", run / "metrics.jsonl")
    (run / "data_report.json").write_text("of the first start")
    report = align_backbone(small_align_config(run, images, train={"keep_checkpoints": 9}), command="again")
    if step < 6:  # from the last step, nothing is left to train
        assert (run / "data_report.1.json").read_text() == "of the first start"
    assert_same_bits(run, whole_run)
    assert losses_of(run) == losses_of(whole_run)
    of_whole = json.loads((whole_run / "report.json").read_text())
    assert report["losses_before"] == of_whole["losses_before"]
    assert report["losses_after"] == of_whole["losses_after"]


@pytest.mark.parametrize("with_workers", [False, True])
def test_a_signal_stops_after_a_checkpoint_even_if_it_kills_the_workers_too(
    with_workers, whole_run, images, tmp_path, monkeypatch, capsys
):
    """A signal stops the run after a checkpoint, both when it reaches the process alone and when it also kills the
    workers, as from a batch system that signals every process of a run."""
    config = small_align_config(tmp_path / "run", images, train={"keep_checkpoints": 9})
    real = ovd.alignment.data.train_loader

    def signalled(*arguments: Any, **options: Any) -> Iterator[Batch]:
        for number, batch in enumerate(real(*arguments, **options)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                if with_workers:
                    raise RuntimeError("loading step 3 failed: DataLoader worker is killed by signal: Terminated.")
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(ovd.alignment.data, "train_loader", signalled)
        with pytest.raises(SystemExit) as stopped:
            align_backbone(config, command="")
    assert stopped.value.code == 143
    saved = 3 if with_workers else 4
    assert f"stopped by a signal after step {saved}; its checkpoint is saved" in capsys.readouterr().out
    assert max(run_folder.name for run_folder in config.output.glob("step-*")) == f"step-{saved:06d}"
    align_backbone(config, command="again")
    assert_same_bits(config.output, whole_run)


def test_a_run_with_other_settings_or_images_is_not_continued(whole_run, images, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    changed = small_align_config(run, images, train={"learning_rate": 0.5, "keep_checkpoints": 9})
    with pytest.raises(ValueError, match=r"different settings: train\.learning_rate was 0\.001, is 0\.5"):
        align_backbone(changed, command="")
    step = run / "step-000006" / "state.json"
    assert step.is_file()
    more = tmp_path / "images"
    shutil.copytree(images, more)
    (more / "new.png").write_bytes((more / "1.png").read_bytes())
    state = small_align_config(run, more, train={"keep_checkpoints": 9}).model_dump(mode="json")
    rewrite_config(run, state)
    with pytest.raises(ValueError, match="the images changed since"):
        align_backbone(small_align_config(run, more, train={"keep_checkpoints": 9}), command="")


def test_what_cannot_end_well_is_refused_before_training(images, tmp_path):
    folder = tmp_path / "clip"
    copy_clip(TINY_CLIP, folder)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match="clip is the folder of the model to align; give another folder"):
        align_backbone(small_align_config(folder, images, clip={"name": str(folder)}), command="")
    assert sorted(path.name for path in folder.iterdir()) == before
    with pytest.raises(ValueError, match=r"^boxes\.detector=.*none does not exist; give the folder of a run"):
        align_backbone(
            small_align_config(tmp_path / "run", images, boxes={"detector": str(tmp_path / "none")}), command=""
        )
    assert not (tmp_path / "run").exists()


def rewrite_config(run: Path, config: dict[str, Any]) -> None:
    """Store another config in the checkpoints of a run, as if the run had been started with it."""
    from ovd.files import sha256_of

    for folder in run.glob("step-*"):
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps(state | {"config": config}))
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"state.json": sha256_of(folder / "state.json")}))


def run_ranks(config: Any, folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "ranks.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    result = subprocess.run(
        [*launcher, "tools/align_backbone.py", str(folder / "ranks.yaml")], cwd=ROOT, capture_output=True, text=True,
        timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_two_ranks_align_as_one_does_with_an_image_that_one_of_them_cannot_read(images, tmp_path):
    damaged = tmp_path / "images"
    shutil.copytree(images, damaged)
    (damaged / "5.png").write_bytes(b"no image")
    runs = {name: tmp_path / name / "run" for name in ("one", "two")}
    align_backbone(small_align_config(runs["one"], damaged), command="")
    run_ranks(small_align_config(runs["two"], damaged), tmp_path / "two", 2)
    one, two = (losses_of(run) for run in runs.values())
    assert len(one) == len(two) == 6
    for here, there in zip(one, two, strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-4)
    reports = {name: json.loads((run / "report.json").read_text()) for name, run in runs.items()}
    for when in ("losses_before", "losses_after"):
        assert reports["one"][when] == pytest.approx(reports["two"][when], rel=1e-3)
    counts = [report["times_an_image_was_not_read"] for report in reports.values()]
    assert counts[0] == counts[1] >= 1
    ranks = [json.loads((runs["two"] / name).read_text()) for name in ("data_report.json", "data_report.rank1.json")]
    assert sum(report["skipped_by_code"].get("F9", 0) for report in ranks) == counts[1]


def test_a_folder_of_damaged_images_is_an_error(tmp_path):
    folder = write_images(tmp_path / "images", 4)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="can be read"):
        align_backbone(small_align_config(tmp_path / "run", folder), command="")
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["skipped_by_code"] == {"F9": 4}


@pytest.mark.slow
def test_mistakes_end_in_one_line(images, tmp_path):
    (tmp_path / "empty").mkdir()

    def message(*overrides: str) -> str:
        command = [sys.executable, "tools/align_backbone.py", "configs/align_tiny.yaml", f"output={tmp_path / 'run'}"]
        result = subprocess.run([*command, *overrides], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 2, result.stderr
        return result.stderr

    folder = "data.source.kind=folder"
    empty = message(folder, f"data.source.images={tmp_path / 'empty'}")
    assert "empty: no images (.jpg" in empty
    assert "set data.source.images to the folder that holds them" in empty
    assert "side must be a multiple of 16" in message(folder, f"data.source.images={images}", "crop=50")
    assert "did you mean train.steps" in message("train.step=5")


def test_held_out_images_are_not_trained_on(tmp_path):
    folder = write_images(tmp_path / "images", 120)
    config = small_align_config(tmp_path / "run", folder, train={"steps": 120, "held_out": 9})
    source = load_unlabeled_images(config.data)
    data = alignment_data(source, config, DataReport(), size_divisor=32)
    assert (data.num_images, data.num_held_out) == (111, 9)
    trained = {image_id for batch in data.batches_from(0) for image_id in batch.image_ids}
    measured = [image_id for batch in data.held_out() for image_id in batch.image_ids]
    assert len(trained) == 111
    assert len(measured) == len(set(measured)) == 9
    assert not trained & set(measured)


@pytest.mark.parametrize("proposals", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_bf16_and_a_frozen_projection(images, proposals, tmp_path, tiny_clip):
    boxes = {"random": 2, "proposals": proposals, "sides": [0.2, 0.6]}
    train = {"precision": "bf16", "projection_rate": 0.0, "recompute": False}
    config = small_align_config(tmp_path / "run", images, boxes=boxes, train=train)
    report = align_backbone(config, command="")
    aligned = load_clip(str(tmp_path / "run")).model.visual
    assert torch.equal(aligned.head.proj.weight, tiny_clip.model.visual.head.proj.weight)
    assert report["losses_after"]["box"] < report["losses_before"]["box"]


SLOW_HERE = SLOW | {"siglip", "eva02"}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_HERE else name for name in FAMILIES]
)
def test_every_family_is_aligned_and_keeps_its_properties(family, images, tmp_path):
    """Every family can be aligned and keeps its properties.

    The student's projection is disturbed first: with random weights, a network gives nearly the same features
    everywhere, so its own dense feature is as good as it can be.
    """
    source = write_clip_folder(tmp_path / "clip", family)
    crop = 56 if family == "vit_14" else 64
    train = {"learning_rate": 3e-4, "steps": 8, "save_every": 8, "projection_rate": 3.0}
    config = small_align_config(tmp_path / "run", images, clip={"name": str(source)}, crop=crop, train=train)
    clip = load_configured_clip(config.clip)
    distillation = build_distillation(config, clip)
    config.output.mkdir()
    disturb(distillation.student)
    data = alignment_data(
        load_unlabeled_images(config.data), config, DataReport(), size_divisor=distillation.size_divisor
    )
    losses = distillation.losses(DenseFeature(distillation.student), next(data.batches_from(0)), 0)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in distillation.student.named_parameters():  # data parallelism waits for the gradient of each
        assert parameter.grad is not None or not parameter.requires_grad, name
    distillation.student.zero_grad()

    before, after = vars(align(distillation, data, None, Notes())).values()
    assert before["point"] > 0.01
    assert after["point"] < 0.9 * before["point"]
    assert after["box"] < 0.9 * before["box"]
    save_aligned(clip, config.clip.name, config.output, teacher=clip.model.visual, weight_format="float32")
    original, aligned = load_clip(str(source)), load_clip(str(config.output))
    assert text_tower_fingerprint(aligned) == text_tower_fingerprint(original)
    assert (aligned.mean, aligned.std) == (original.mean, original.std) == ((0.4, 0.45, 0.5), (0.2, 0.25, 0.3))
    visual = aligned.model.visual
    assert all(
        torch.equal(tensor.cpu(), visual.state_dict()[name]) for name, tensor in clip.model.visual.state_dict().items()
    )
    dense, pooled = dense_and_pooled_of_a_constant_map(visual, family)
    scale = float(pooled.abs().max())
    torch.testing.assert_close(dense, pooled[:, :, None, None].expand_as(dense), atol=1e-5 * scale, rtol=1e-4)
    if family in AVERAGE_POOLING:
        pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        backbone = backbone_from_visual(visual)
        with torch.no_grad():
            mean, whole = backbone.dense(pixels).mean((2, 3)), backbone.encode(pixels)
        torch.testing.assert_close(mean, whole, atol=1e-5 * float(whole.abs().max()), rtol=1e-4)


@torch.no_grad()
def disturb(student: Backbone) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in student.projection_parameters():
        if parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.add_(0.7 * parameter.std() * noise)
