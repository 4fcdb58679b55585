"""Training runs that are killed, stopped, or made to fail: they resume to the same bits, and all ranks end alike."""

import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import Ranks, training
from run_files import assert_same_step, losses_of, records_of
from small_run import small_config, source_of

import ovd.engine.step
import ovd.files
import ovd.jobs.train
from ovd.build.batches import training_batches
from ovd.build.data import load_training_index
from ovd.config.training import TrainConfig
from ovd.data.loading import loader
from ovd.data.report import DataReport
from ovd.distributed import rank, world_size
from ovd.engine import checkpoint
from ovd.engine.notes import NO_SAMPLES
from ovd.engine.signals import StopRequest
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.files import folder_lock
from ovd.jobs.replay_step import replay_step

STEPS = 5


def faults_config(run: Path, world: Path, *, data: dict | None = None, **train) -> TrainConfig:
    """Make a config of five steps of two images each, with a checkpoint at every step."""
    settings = {"device": "cpu", "steps": STEPS, "save_every": 1, "threads": 1, "precision": "float32", **train}
    data = {"source": source_of(world, validated=False), "size": 64, "workers": 0, **(data or {})}
    return small_config(run, world, train=settings, data=data, bank={"templates": "none"})


def assert_same_bits(run: Path, reference: Path) -> None:
    assert_same_step(*(folder / f"step-{STEPS:06d}" for folder in (run, reference)))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, miniature_world) -> Path:
    """An undisturbed run."""
    run = tmp_path_factory.mktemp("reference") / "run"
    with training(faults_config(run, miniature_world)) as ranks:
        assert ranks.exit_codes() == [0], ranks.output()
    return run


def wait_until(happened: Callable[[], bool], ranks: Ranks, *, deadline_s: float = 900) -> None:
    end = time.monotonic() + deadline_s
    while not happened() and ranks.is_running():
        assert time.monotonic() < end
        time.sleep(0.0005)


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_instant_a_run_goes_on_to_the_same_bits(reference, miniature_world, tmp_path, kills):
    """A killed run resumes to the same bits; every second kill comes during a save, the others at any time."""
    run, randomness = tmp_path / "run", random.Random(0)
    config = faults_config(run, miniature_world)
    num_inside = 0
    for kill in range(kills):
        with training(config, resume=True) as ranks:
            if kill % 2 == 0:
                wait_until(lambda: any(run.glob("step-*.tmp")), ranks)
                time.sleep(randomness.uniform(0, 0.02))
            else:
                wait_until(lambda: bool(ranks.output()), ranks)
                time.sleep(randomness.uniform(0, 3))
            ranks.send(signal.SIGKILL)
            ranks.exit_codes()
        num_inside += any(run.glob("step-*.tmp"))
        if (run / f"step-{STEPS:06d}").is_dir():  # the run was finished before the kill
            assert_same_bits(run, reference)
            shutil.rmtree(run)
    if kills > 2:
        assert num_inside > kills // 10
    with training(config, resume=True) as ranks:
        assert ranks.exit_codes() == [0], ranks.output()
    assert_same_bits(run, reference)
    assert [record["step"] for record in records_of(run, "train")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("number", "count", "workers"),
    [
        (signal.SIGTERM, 1, 1),
        (signal.SIGUSR1, 2, 0),
        (signal.SIGINT, 1, 1),
        pytest.param(signal.SIGTERM, 1, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 1, 0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_rank_stops_all_after_a_checkpoint(miniature_world, tmp_path, number, count, workers):
    """A signal to one rank stops all ranks after a checkpoint; it goes to the rank's process group, which excludes its
    workers."""
    run = tmp_path / "run"
    config = faults_config(run, miniature_world, data={"workers": workers}, steps=1000, save_every=2)
    with training(config, ranks=count) as ranks:
        wait_until(lambda: any(run.glob("step-*")), ranks)
        ranks.send(number, rank=count - 1, to_group=True)
        assert ranks.exit_codes() == [143] * count, ranks.output()
        output = ranks.output()
    assert ("stopping after this step" in output) == (number == signal.SIGINT)
    found = checkpoint.latest(run, strict=True)
    assert found is not None
    assert f"stopped by a signal after step {found.step}; its checkpoint is saved" in output
    assert list(run.glob("*.tmp")) == []


def with_a_signal_in_the_evaluation() -> None:
    """Send a signal to the last rank at the third of its twelve images."""
    real, calls = BoxEvaluator.update, []

    def update(*arguments):
        real(*arguments)
        calls.append(1)
        if rank() == world_size() - 1:
            assert len(calls) <= 3
            if len(calls) == 3:
                signal.raise_signal(signal.SIGTERM)

    BoxEvaluator.update = update  # type: ignore[method-assign]


def test_a_signal_to_one_rank_in_an_evaluation_stops_all_after_a_checkpoint(miniature_world, tmp_path):
    run = tmp_path / "run"
    data = {"source": source_of(miniature_world)}
    config = faults_config(run, miniature_world, data=data, steps=1000, save_every=500, eval_every=2)
    fault = with_a_signal_in_the_evaluation
    with training(config, ranks=2, fault=fault, job=ovd.jobs.train.train_from_config) as ranks:
        assert ranks.exit_codes() == [143, 143], ranks.output()
        assert "stopped by a signal after step 2; its checkpoint is saved" in ranks.output()
    found = checkpoint.latest(run, strict=True)
    assert found is not None
    assert found.step == 2


def _losses_of_last_rank(change: Callable) -> None:
    """Change the predictions of the last rank as it computes its losses in the third step."""
    real, calls = ovd.engine.step.detection_losses, []

    def losses(predictions, *arguments, **options):
        calls.append(1)
        if len(calls) == 3 and rank() == world_size() - 1:
            predictions = replace(predictions, embeddings=change(predictions.embeddings))
        return real(predictions, *arguments, **options)

    ovd.engine.step.detection_losses = losses


def with_a_loss_of_nan() -> None:
    _losses_of_last_rank(lambda embeddings: embeddings * float("nan"))


def with_an_infinite_gradient() -> None:
    def change(embeddings: torch.Tensor) -> torch.Tensor:
        embeddings.register_hook(lambda gradient: gradient * float("inf"))
        return embeddings

    _losses_of_last_rank(change)


@pytest.mark.parametrize(
    ("fault", "count", "named"),
    [
        (with_an_infinite_gradient, 2, "gradient norm = "),
        pytest.param(with_an_infinite_gradient, 1, "gradient norm = ", marks=pytest.mark.slow),
        pytest.param(with_a_loss_of_nan, 2, "class = nan", marks=pytest.mark.slow),
        pytest.param(with_a_loss_of_nan, 1, "class = nan", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_finite_on_one_rank_stops_all_before_the_step(
    miniature_world, tmp_path, capsys, fault, count, named
):
    run = tmp_path / "run"
    with training(faults_config(run, miniature_world), ranks=count, fault=fault) as ranks:
        assert ranks.exit_codes() == [3] * count, ranks.output()
        for number in range(count):
            assert f"error[F19]: NaN or infinity before the optimizer step: {named}" in ranks.output(number)
    found = checkpoint.latest(run, strict=True)
    assert found is not None
    assert found.step == 2
    dumps = sorted(run.glob("failed-step-*"))
    assert [dump.name for dump in dumps] == [f"failed-step-000002.rank{number}.pt" for number in range(count)]
    replay_step(dumps[-1])
    assert "weights that are not finite: none" in capsys.readouterr().out


def with_a_killed_worker() -> None:
    _in_a_worker_of_the_last_rank(lambda: os.kill(os.getpid(), signal.SIGKILL))


def with_a_hanging_worker() -> None:
    loader.TIMEOUT_S = 4
    _in_a_worker_of_the_last_rank(lambda: time.sleep(300))


def _in_a_worker_of_the_last_rank(happens: Callable[[], None]) -> None:
    real, calls = loader.DetectionDataset._load, []

    def load(*arguments):
        calls.append(1)
        if len(calls) > 4 and rank() == world_size() - 1 and torch.utils.data.get_worker_info() is not None:
            happens()
        return real(*arguments)

    loader.DetectionDataset._load = load  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("fault", "reason"), [(with_a_killed_worker, "Killed"), (with_a_hanging_worker, "timed out")])
def test_a_worker_that_dies_or_hangs_stops_all_ranks_and_the_run_goes_on(
    reference, miniature_world, tmp_path, fault, reason, count
):
    run = tmp_path / "run"
    config = faults_config(run, miniature_world, data={"workers": 1}, batch_size=2 * count)
    with training(config, ranks=count, fault=fault) as ranks:
        assert ranks.exit_codes() == [3] * count, ranks.output()
        words = rf"loading step \d \(image ids \[.*\]\) failed: .*{reason}"
        assert re.search(rf"error: {words}", ranks.output(count - 1)), ranks.output(count - 1)
        assert re.search(words, ranks.output()), ranks.output()
    found = checkpoint.latest(run, strict=True)
    assert found is not None
    assert 1 <= found.step < STEPS
    if count == 1:
        with training(config, resume=True) as ranks:
            assert ranks.exit_codes() == [0], ranks.output()
        assert_same_bits(run, reference)


def test_data_that_stop_one_rank_stop_all_with_its_exit_code_and_its_words(miniature_world, tmp_path):
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(miniature_world / "images", images)
    source = {**source_of(miniature_world, validated=False), "train_images": str(images)}
    config = faults_config(run, miniature_world, data={"source": source}, steps=6)
    index = load_training_index(config, DataReport())
    batches = training_batches(config, index, first_samples=NO_SAMPLES, size_divisor=128)(0)
    for batch in list(batches)[:5]:
        (images / "train" / f"{batch.image_ids[1]:012d}.jpg").write_bytes(b"")  # an image of the second rank
    with training(config, ranks=2) as ranks:
        assert ranks.exit_codes() == [2, 2], ranks.output()
        words = r"5 of \d+ skipped .*file is empty"
        assert re.search(rf"^error\[F9\]: {words}", ranks.output(1), re.M)
        assert re.search(rf"^error: rank 1: {words}", ranks.output(0), re.M)
    found = checkpoint.latest(run, strict=True)
    assert found is not None
    assert found.step == 4


def with_a_disk_that_fails() -> None:
    """Let the disk fail on the last rank, at about the third step's image."""
    real, calls = loader.DetectionDataset._load, []

    def load(*arguments):
        calls.append(1)
        if len(calls) == 4 and rank() == world_size() - 1:
            raise OSError("the disk does not answer")
        return real(*arguments)

    loader.DetectionDataset._load = load  # type: ignore[method-assign]


def test_a_disk_that_fails_on_one_rank_stops_all_with_its_words(miniature_world, tmp_path):
    run = tmp_path / "run"
    with training(faults_config(run, miniature_world), ranks=2, fault=with_a_disk_that_fails) as ranks:
        assert ranks.exit_codes() == [3, 3], ranks.output()
        assert "error: the disk does not answer (" in ranks.output(1)
        assert "error: rank 1: the disk does not answer (" in ranks.output(0)
    assert checkpoint.latest(run) is not None


@pytest.mark.slow
def test_a_broken_annotation_file_ends_all_ranks_alike(miniature_world, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text((miniature_world / "annotations" / "lvis_train.json").read_text()[:-9])
    source = {**source_of(miniature_world, validated=False), "train_annotations": str(broken)}
    config = small_config(tmp_path / "run", miniature_world, data={"source": source})
    with training(config, ranks=2) as ranks:
        assert ranks.exit_codes() == [2, 2]
        assert all(f"error[F1]: {broken}: invalid JSON at byte" in ranks.output(number) for number in range(2))


def test_when_one_rank_is_killed_the_other_ends_within_a_minute(miniature_world, tmp_path):
    run = tmp_path / "run"
    with training(faults_config(run, miniature_world, steps=5000), ranks=2) as ranks:
        wait_until(lambda: any(run.glob("step-*")), ranks)
        ranks.send(signal.SIGKILL, rank=1)
        assert ranks.exit_codes(timeout_s=60) == [3, -signal.SIGKILL], ranks.output()
    assert checkpoint.latest(run) is not None


def with_a_disk_that_is_full_after_the_first_save() -> None:
    real = checkpoint.save

    def save(*arguments, **options):
        folder = real(*arguments, **options)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        return folder

    checkpoint.save = save  # type: ignore[assignment]


def test_a_full_disk_keeps_the_older_checkpoint_and_stops_at_the_third_failure(reference, miniature_world, tmp_path):
    run = tmp_path / "run"
    config = faults_config(run, miniature_world)
    with training(config, fault=with_a_disk_that_is_full_after_the_first_save) as ranks:
        assert ranks.exit_codes() == [3], ranks.output()
        words = re.findall(
            r"(.*): the checkpoint of step (\d) in .* cannot be saved .*; the newest checkpoint is .*step-000001",
            ranks.output(),
        )
    assert words == [("warning", "2"), ("warning", "3"), ("error[F22]", "4")]
    assert [path.name for path in run.glob("step-*")] == ["step-000001"]
    with training(config, resume=True) as ranks:
        assert ranks.exit_codes() == [0], ranks.output()
    assert_same_bits(run, reference)


def test_a_damaged_newest_checkpoint_is_passed_over_or_stops_a_strict_resume(reference, miniature_world, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    damaged = run / f"step-{STEPS:06d}" / "optimizer.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    config = faults_config(run, miniature_world)
    with training(config, resume=True, strict_resume=True) as ranks:
        assert ranks.exit_codes() == [2], ranks.output()
        assert f"error: damaged checkpoint {damaged.parent}: optimizer.safetensors" in ranks.output()
    assert damaged.read_bytes() == content
    with training(config, resume=True) as ranks:
        assert ranks.exit_codes() == [0], ranks.output()
        assert f"{damaged.parent}: optimizer.safetensors" in ranks.output()
        assert f"using {run / f'step-{STEPS - 1:06d}'}" in ranks.output()
    assert_same_bits(run, reference)


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_the_same_batches_if_it_divides_them(reference, miniature_world, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    shutil.rmtree(run / f"step-{STEPS:06d}")
    config = faults_config(run, miniature_world)
    with training(config, ranks=3, resume=True) as ranks:
        assert ranks.exit_codes() == [2, 2, 2], ranks.output()
        assert (
            "the 2 images of a batch (train.batch_size, data.pairs.share) cannot be divided among 3 ranks"
            in ranks.output()
        )
    with training(config, ranks=2, resume=True) as ranks:
        assert ranks.exit_codes() == [0, 0], ranks.output()
    last, expected = (losses_of(folder)[-1] for folder in (run, reference))
    assert last == pytest.approx(expected, rel=3e-5, abs=3e-5)


def without_patience() -> None:
    ovd.files.LOCK_TIMEOUT_S = 0


def test_a_folder_that_is_written_to_takes_no_second_training(miniature_world, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with folder_lock(run), training(faults_config(run, miniature_world), fault=without_patience) as ranks:
        assert ranks.exit_codes() == [2], ranks.output()
        assert f"{run} is in use by process {os.getpid()} on " in ranks.output()
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_a_hang_up_stops_after_a_checkpoint_unless_it_is_ignored(miniature_world, tmp_path):
    run = tmp_path / "run"
    with training(faults_config(run, miniature_world, steps=5000)) as ranks:
        wait_until(lambda: any(run.glob("step-*")), ranks)
        ranks.send(signal.SIGHUP)
        assert ranks.exit_codes() == [143], ranks.output()
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.received
    finally:
        signal.signal(signal.SIGHUP, previous)


def _write_after_a_hang_up(answers) -> None:
    terminal, own_end = os.openpty()
    os.dup2(own_end, 1)
    os.close(own_end)
    with StopRequest() as stop:
        os.close(terminal)
        signal.raise_signal(signal.SIGHUP)
        os.write(1, b"a line")  # raises an error, since the terminal is gone
        answers.put(stop.received)


def test_after_a_hang_up_lines_go_nowhere_and_the_step_is_finished():
    processes = multiprocessing.get_context("fork")
    answers = processes.SimpleQueue()
    process = processes.Process(target=_write_after_a_hang_up, args=(answers,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert answers.get() is True
