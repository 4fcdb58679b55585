"""Training as a user runs it, for a few steps on a miniature world: the same seed gives the same bits, even when
killed."""

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_files import assert_same_step, assert_same_tensors, losses_of, records_of, tensors_of
from safetensors.torch import load_file
from small_run import small_config, source_of

import ovd.engine.step
import ovd.jobs.training_setup
from ovd.build.batches import training_batches
from ovd.build.data import load_training_index
from ovd.build.detector import build_detector
from ovd.build.trained import find_checkpoint, load_detector
from ovd.data.report import DataError, DataReport
from ovd.engine import checkpoint
from ovd.engine.notes import NO_SAMPLES, Notes
from ovd.engine.optim import NonFiniteError
from ovd.engine.signals import StopRequest
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.note import EvaluationNote, read_note
from ovd.evaluation.run import measure_results
from ovd.files import sha256_of
from ovd.jobs.evaluate import evaluate_run
from ovd.jobs.replay_step import replay_step
from ovd.jobs.train import train_from_config

ROOT = Path(__file__).parents[2]
STEPS = 6
NUM_VAL_IMAGES = 24


def end_of(run: Path) -> Path:
    return run / f"step-{STEPS:06d}"


def assert_same_bits(run: Path, other: Path) -> None:
    assert_same_step(end_of(run), end_of(other))


@pytest.fixture
def reference(plain_run) -> Path:
    return plain_run


def test_same_seed_gives_the_same_bits_and_another_does_not(reference, tmp_path, miniature_world):
    train_from_config(small_config(tmp_path / "again", miniature_world), evaluate=False)
    assert_same_bits(reference, tmp_path / "again")
    train_from_config(small_config(tmp_path / "other", miniature_world, train={"seed": 1}), evaluate=False)
    one, other = (tensors_of(end_of(run))["model"] for run in (reference, tmp_path / "other"))
    assert not torch.equal(one["head.distances.weight"], other["head.distances.weight"])


def test_a_run_killed_after_its_last_checkpoint_still_gets_its_evaluation(reference, tmp_path, miniature_world):
    run = tmp_path / "copy"
    shutil.copytree(reference, run)
    metrics = train_from_config(small_config(run, miniature_world), resume=True)
    assert "APr" in metrics
    assert (run / "metrics.json").is_file()
    with Image.open(run / "predictions.jpg") as picture:
        assert picture.width > 384
    assert_same_bits(reference, run)


@pytest.mark.slow
def test_evaluations_on_the_way_change_nothing_in_the_training(reference, tmp_path, miniature_world):
    run = tmp_path / "watched"
    train_from_config(small_config(run, miniature_world, train={"eval_every": 3}))
    assert_same_bits(reference, run)
    assert [record["step"] for record in records_of(run, "evaluation")] == [3, 6]


def test_an_evaluation_that_fails_comes_after_the_checkpoint_of_its_step(tmp_path, miniature_world, monkeypatch):
    def fail(*_, **__):
        raise ValueError("an image has vanished")

    monkeypatch.setattr("ovd.jobs.train.measure_results", fail)
    config = small_config(tmp_path / "run", miniature_world, train={"steps": 4, "eval_every": 2})
    with pytest.raises(ValueError, match="an image has vanished"):
        train_from_config(config)
    found = checkpoint.latest(config.output)
    assert found is not None
    assert found.step == 2
    monkeypatch.undo()
    train_from_config(config, resume=True)
    assert [record["step"] for record in records_of(config.output, "evaluation")] == [2, 4]


def test_an_evaluation_whose_files_cannot_be_written_is_measured_and_printed_once(
    tmp_path, miniature_world, monkeypatch, capsys
):
    def write(*_, **__):
        raise OSError("no space left on device")

    measured = []

    def measure(*arguments, **options):
        measured.append(measure_results(*arguments, **options))
        return measured[-1]

    monkeypatch.setattr("ovd.jobs.train.write_measures", write)
    monkeypatch.setattr("ovd.jobs.train.measure_results", measure)
    run = tmp_path / "run"
    metrics = train_from_config(small_config(run, miniature_world, train={"steps": 1, "warmup_steps": 1}))
    assert [measures.evaluation.metrics for measures in measured] == [metrics]
    output, errors = capsys.readouterr()
    assert output.count("LVIS box AP, ordinary") == output.count("Decisions of ") == 1
    assert f"warning: {run}: the files of the evaluation cannot be written (no space left on device)" in errors
    assert not (run / "metrics.json").exists()


def test_a_full_disk_is_survived_twice_but_not_at_the_end(tmp_path, miniature_world, monkeypatch, capsys):
    real_save = checkpoint.save
    failing = {1, 2}

    def save(run_dir, state, **others):
        if state.step in failing:
            raise checkpoint.SaveError(f"no space left for step {state.step}")
        return real_save(run_dir, state, **others)

    monkeypatch.setattr(checkpoint, "save", save)
    config = small_config(tmp_path / "run", miniature_world, train={"steps": 3, "save_every": 1})
    train_from_config(config, evaluate=False)
    assert capsys.readouterr().err.count("warning: no space left") == 2
    failing.add(3)
    with pytest.raises(checkpoint.SaveError):
        train_from_config(config.model_copy(update={"output": tmp_path / "other"}), evaluate=False)


def test_a_detector_is_refused_with_another_text_tower(reference, monkeypatch):
    monkeypatch.setattr("ovd.build.trained.text_tower_fingerprint", lambda clip: "another")
    with pytest.raises(ValueError, match="a different text tower"):
        load_detector(reference)


def test_a_run_that_starts_from_an_alignment_is_told_how_to_use_it(tmp_path, miniature_world):
    aligned = checkpoint.save_weights(tmp_path / "aligned", tensors={}, config={}, notes=Notes())
    config = small_config(tmp_path / "run", miniature_world, init_from=str(aligned.parent))
    with pytest.raises(ValueError, match=r"aligned/step-000000 is not the checkpoint of a detector; .* clip\.name"):
        train_from_config(config)


def test_resuming_with_other_settings_stops_and_names_them(reference, miniature_world):
    changed = small_config(reference, miniature_world, train={"learning_rate": 5e-4, "save_every": 3})
    with pytest.raises(ValueError, match=r"train\.learning_rate was 0\.001, is 0\.0005") as error:
        train_from_config(changed, resume=True)
    assert "save_every" not in str(error.value)


def test_a_second_run_never_overwrites_the_first(reference, miniature_world):
    with pytest.raises(ValueError, match="already contains a run"):
        train_from_config(small_config(reference, miniature_world))


@pytest.mark.pictures
def test_trained_run_evaluates_with_the_metrics_of_both_protocols(reference, tmp_path):
    evaluation = evaluate_run(load_detector(reference), output=tmp_path / "eval", html=True)
    assert {"AP", "APr", "APc", "APf", "AP_fixed", "APr_fixed", "APr_exhaustive"} <= evaluation.metrics.keys()
    for name in (
        "results.json", "metrics.json", "per_class.csv", "precision_recall.png", "decisions.json", "reliability.png",
        "naming.json", "naming.png",
    ):  # fmt: skip
        assert (tmp_path / "eval" / name).stat().st_size > 0
    assert f"<title>{reference}: evaluation</title>" in (tmp_path / "eval" / "report.html").read_text()
    weights = find_checkpoint(reference).weights
    assert read_note(tmp_path / "eval") == EvaluationNote(sha256_of(weights), is_of_own_set=True)


def test_run_folder_explains_itself(reference):
    names = {path.name for path in reference.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "curves.png", "data_report.json", "tensorboard"} <= names
    assert sorted(path.name for path in reference.glob("step-*")) == ["step-000004", "step-000006"]
    with Image.open(reference / "training_images.jpg") as picture:
        assert picture.width > 384


def test_starting_from_a_trained_detector_keeps_its_weights_and_bias(reference, tmp_path, miniature_world):
    still = {"steps": 1, "learning_rate": 1e-12, "warmup_steps": 0}
    train_from_config(
        small_config(tmp_path / "tuned", miniature_world, train=still, init_from=str(reference)), evaluate=False
    )
    start = tensors_of(end_of(reference))["ema"]
    tuned = load_file(tmp_path / "tuned" / "step-000001" / "model.safetensors")
    for name, tensor in start.items():
        torch.testing.assert_close(tuned[name], tensor, atol=1e-6, rtol=1e-5)


def test_rare_classes_are_neither_in_the_vocabulary_nor_in_the_boxes(miniature_world, tmp_path):
    base = load_training_index(small_config(tmp_path, miniature_world), DataReport())
    assert all(category.frequency != "r" for category in base.categories)
    everything = load_training_index(small_config(tmp_path, miniature_world, data={"classes": "all"}), DataReport())
    assert len(everything) == len(base)
    assert len(everything.categories) > len(base.categories)
    of_rare = [everything.categories[row].frequency == "r" for row in everything.classes.values]
    assert sum(of_rare) > 0
    assert len(base.boxes.values) == len(everything.boxes.values) - sum(of_rare)


def test_a_loss_that_is_not_finite_leaves_a_dump_that_can_be_looked_at(tmp_path, miniature_world, monkeypatch, capsys):
    real = ovd.engine.step.detection_losses
    calls = []

    def losses(predictions, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            predictions = replace(predictions, embeddings=predictions.embeddings * float("nan"))
        return real(predictions, *arguments, **options)

    monkeypatch.setattr("ovd.engine.step.detection_losses", losses)
    config = small_config(tmp_path / "run", miniature_world)
    with pytest.raises(NonFiniteError, match=r"class = nan.*replay-step .*failed-step-000002\.rank0\.pt"):
        train_from_config(config, evaluate=False)
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-000002"]
    capsys.readouterr()
    replay_step(tmp_path / "run" / "failed-step-000002.rank0.pt")
    output = capsys.readouterr().out
    assert "losses in training: class nan" in output
    assert "weights that are not finite: none" in output
    assert output.count("embeddings finite: True, boxes finite: True") == 2
    with pytest.raises(ValueError, match=r"config\.yaml is not the dump of a training step: UnpicklingError$"):
        replay_step(tmp_path / "run" / "config.yaml")


def test_the_task_aligned_head_and_assignment_train(tmp_path, miniature_world):
    train = {"assignment": "task_aligned", "atss_steps": 3, "accumulate": 2}
    config = small_config(tmp_path / "run", miniature_world, train=train, detector={"head": "task_aligned"})
    train_from_config(config, evaluate=False)
    losses = losses_of(tmp_path / "run")
    assert len(losses) == STEPS
    assert all(0 < value < 10 for step in losses for value in step.values())


def test_stochastic_layers_draw_anew_in_each_step_and_repeat_after_a_resume(
    reference, tmp_path, miniature_world, monkeypatch
):
    drawn: list[float] = []

    def add_noise(pyramid, maps):
        if not pyramid.training:
            return None
        noise = [0.1 * torch.randn_like(x) for x in maps[0]]
        drawn.append(noise[0].flatten()[0].item())
        return (tuple(map(torch.add, maps[0], noise)),)

    def build(config, clip, **options):
        """Build a detector with noise on the pyramid's inputs, drawn from torch's generator as timm draws dropped
        blocks."""
        detector = build_detector(config, clip, **options)
        detector.pyramid.register_forward_pre_hook(add_noise)
        return detector

    monkeypatch.setattr("ovd.build.learner.build_detector", build)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_from_config(small_config(whole, miniature_world), evaluate=False)
    assert len(set(drawn)) >= STEPS
    one, other = (tensors_of(end_of(run))["model"] for run in (whole, reference))
    assert not torch.equal(one["head.distances.weight"], other["head.distances.weight"])
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "step-000006")
    (resumed / "data_report.1.json").write_text("{}")  # the report of an earlier start
    for _ in range(2):  # the second time nothing is left to do
        train_from_config(small_config(resumed, miniature_world), resume=True, evaluate=False)
    assert_same_bits(whole, resumed)
    assert (resumed / "data_report.1.json").read_text() == "{}"
    reports = [json.loads((resumed / name).read_text()) for name in ("data_report.2.json", "data_report.json")]
    assert [report["used"]["sample"] for report in reports] == [2 * STEPS, 2 * (STEPS - 4)]


def test_going_on_from_another_run_takes_the_new_runs_rates(reference, tmp_path, miniature_world):
    still = {"steps": 1, "learning_rate": 1e-9, "warmup_steps": 0}
    onward = {"init_from": str(reference), "init_state": "training"}
    train_from_config(small_config(tmp_path / "run", miniature_world, train=still, **onward), evaluate=False)
    before = tensors_of(end_of(reference))["model"]
    after = load_file(tmp_path / "run" / "step-000001" / "model.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_resuming_on_other_data_stops_and_says_so(tmp_path, miniature_world):
    world = tmp_path / "world"
    shutil.copytree(miniature_world, world)
    config = small_config(tmp_path / "run", world, train={"steps": 1, "warmup_steps": 0})
    train_from_config(config, evaluate=False)
    path = world / "annotations" / "lvis_train.json"
    whole = path.read_text()
    content = json.loads(whole)
    content["images"].reverse()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"started on other data: the annotations changed since"):
        train_from_config(config, resume=True, evaluate=False)
    path.write_text(whole)
    train_from_config(config, resume=True, evaluate=False)


def test_gradients_are_clipped_and_the_average_follows_the_weights_as_configured(tmp_path, miniature_world):
    train = {"steps": 1, "warmup_steps": 0, "clip_norm": 1e-3, "ema_decay": 0.0}
    train_from_config(small_config(tmp_path / "run", miniature_world, train=train), evaluate=False)
    files = tensors_of(tmp_path / "run" / "step-000001")
    assert_same_tensors(files["ema"], files["model"])
    first_moments = [tensor for name, tensor in files["optimizer"].items() if name.endswith("exp_avg")]
    norm = torch.stack([tensor.norm() for tensor in first_moments]).norm().item()
    assert norm == pytest.approx(1e-4, rel=1e-3)  # a first moment is a tenth of the gradient


def test_the_configured_negatives_and_noise_reach_the_texts_of_a_step(tmp_path, miniature_world, monkeypatch):
    samplers = []

    def train(_, data, *__, **___) -> dict[str, float]:
        samplers.append(data.text_sampler)
        return {}

    monkeypatch.setattr("ovd.jobs.train.train", train)
    settings = {"negatives": "strict", "sampled_classes": 7, "name_dropout": 0.2}
    config = small_config(tmp_path / "run", miniature_world, train=settings)
    train_from_config(config.model_copy(update={"bank": config.bank.model_copy(update={"noise": 0.3})}))
    (texts,) = samplers
    used = texts.train
    assert (used.negatives, used.sampled_classes, used.name_dropout, texts.noise) == ("strict", 7, 0.2, 0.3)
    assert (texts.pair_texts, texts.sampled_texts, used.pair_negatives) == (None, 0, False)


def test_a_warm_up_longer_than_the_run_is_refused_at_once(tmp_path, miniature_world):
    with pytest.raises(ValueError, match=r"train\.warmup_steps is 9, more than train\.steps, 6"):
        train_from_config(small_config(tmp_path / "run", miniature_world, train={"warmup_steps": 9}))
    assert not (tmp_path / "run").exists()


def test_the_first_line_of_a_run_has_the_threads_that_it_computes_with(tmp_path, capsys):
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        (tmp_path / "annotations" / f"lvis_{part}.json").write_text('{"images": [')  # stops the run after this line
    before = torch.get_num_threads()
    try:
        with pytest.raises(DataError, match=r"lvis_train\.json"):
            train_from_config(small_config(tmp_path / "run", tmp_path, train={"threads": before + 1}))
    finally:
        torch.set_num_threads(before)
    assert f", {before + 1} threads, torch" in capsys.readouterr().out.splitlines()[0]


def test_a_first_batch_that_cannot_be_read_is_passed_over(tmp_path, miniature_world):
    images = tmp_path / "images"
    shutil.copytree(miniature_world / "images", images)
    source = {**source_of(miniature_world), "train_images": str(images)}
    train = {"batch_size": 1, "steps": 2}
    config = small_config(tmp_path / "run", miniature_world, train=train, data={"source": source})
    index = load_training_index(config, DataReport())
    first = next(training_batches(config, index, first_samples=NO_SAMPLES, size_divisor=128)(0))
    (images / "train" / f"{first.image_ids[0]:012d}.jpg").write_bytes(b"")
    train_from_config(config, evaluate=False)
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["skipped_by_code"] == {"F9": 1}
    for path in images.glob("train/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no image could be read; the last errors: F9 .*file is empty"):
        train_from_config(config.model_copy(update={"output": tmp_path / "other"}), evaluate=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # torch warns while it looks for compilers
def test_compiled_training_and_evaluation_end_where_the_plain_ones_do(tmp_path, miniature_world):
    ends = []
    for compile in (False, True):
        train = {"steps": 52, "eval_every": 51, "precision": "float32", "compile": compile}
        run = tmp_path / str(compile)
        train_from_config(small_config(run, miniature_world, train=train, eval={"compile": compile}))
        ends.append(losses_of(run))
        assert [record["step"] for record in records_of(run, "gates")] == [50, 52]
    for step, (plain, compiled) in enumerate(zip(*ends, strict=True)):
        assert compiled == pytest.approx(plain, rel=1e-3 if step < 5 else 0.1), step


def test_missing_images_of_either_set_are_found_before_the_first_step(tmp_path, miniature_world):
    config = small_config(tmp_path / "run", miniature_world)
    for part, message in (("train", "none of .* images? found in"), ("val", "none of .* images? found in")):
        source = {**config.data.source.model_dump(mode="json"), f"{part}_images": str(tmp_path)}
        with pytest.raises(DataError, match=rf"lvis_{part}\.json: {message}") as caught:
            train_from_config(small_config(tmp_path / part, miniature_world, data={"source": source}))
        assert caught.value.code == "F8"
        assert not list((tmp_path / part).glob("step-*"))


def test_loading_a_detector_leaves_the_random_state(reference):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_detector(str(reference))
    assert torch.equal(torch.rand(3), expected)


def signal_in_an_evaluation(monkeypatch, image: int) -> list[int]:
    """Send SIGTERM after the given number of evaluated images, and return a list that gets the ids of all of them."""
    real, seen = BoxEvaluator.update, list[int]()

    def update(self, image_id, detections):
        real(self, image_id, detections)
        seen.append(image_id)
        if len(seen) == image:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(BoxEvaluator, "update", update)
    return seen


def test_a_signal_in_an_evaluation_ends_it_and_the_run_goes_on_with_it(tmp_path, miniature_world, monkeypatch, capsys):
    config = small_config(tmp_path / "run", miniature_world, train={"steps": 4, "eval_every": 2, "save_every": 100})
    steps = []
    for resume, image in ((False, 3), (True, NUM_VAL_IMAGES + 5)):  # during training, and in the last evaluation
        with monkeypatch.context() as patch:
            seen = signal_in_an_evaluation(patch, image)
            with pytest.raises(SystemExit) as stopped:
                train_from_config(config, resume=resume)
        assert stopped.value.code == 143
        assert len(seen) == image
        found = checkpoint.latest(config.output)
        assert found is not None
        steps.append(found.step)
        assert f"stopped by a signal after step {found.step}; its checkpoint is saved" in capsys.readouterr().out
    assert steps == [2, 4]
    assert [record["step"] for record in records_of(config.output, "evaluation")] == [2]
    assert "APr" in train_from_config(config, resume=True)
    assert [record["step"] for record in records_of(config.output, "evaluation")] == [2, 4]
    assert len(losses_of(config.output)) == 4


@pytest.mark.parametrize("kills_workers", [False, True])
def test_an_evaluation_that_the_end_of_a_run_depends_on_is_finished(
    tmp_path, miniature_world, monkeypatch, kills_workers
):
    train = {"steps": 4, "eval_every": 2, "save_every": 100, "patience": 2}
    config = small_config(tmp_path / "run", miniature_world, train=train)
    seen = signal_in_an_evaluation(monkeypatch, 3)
    add_results = BoxEvaluator.update

    def update(self, image_id, detections):
        add_results(self, image_id, detections)
        if kills_workers and len(seen) == 3:
            raise RuntimeError("a worker is killed")

    monkeypatch.setattr(BoxEvaluator, "update", update)
    with pytest.raises(SystemExit):
        train_from_config(config)
    assert len(seen) == NUM_VAL_IMAGES + (3 if kills_workers else 0)
    found = checkpoint.latest(config.output)
    assert found is not None
    assert found.step == 2
    assert found.notes.early_stop is not None
    assert [step for step, _ in found.notes.early_stop.evaluations] == [2]


def test_an_error_of_a_loader_is_none_after_a_signal():
    def items():
        yield 1
        signal.raise_signal(number)
        raise RuntimeError("a worker is killed")

    number = signal.SIGTERM
    with StopRequest() as stop:
        assert list(stop.until_received(items())) == [1]
    number = signal.SIGURG  # a signal without a meaning for the run
    with StopRequest() as stop, pytest.raises(RuntimeError, match="is killed"):
        list(stop.until_received(items()))


def test_outside_of_the_main_thread_no_signal_is_noted():
    """A training may run in a thread, as tuning libraries start it."""

    def train() -> bool:
        with StopRequest() as stop:
            return stop.received

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(train).result() is False
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("steps", [0, 3])
def test_a_signal_that_kills_the_workers_too_is_a_stop(tmp_path, miniature_world, monkeypatch, capsys, steps):
    """A signal that also kills the workers is a stop, as from a batch system that signals every process of a run."""
    real, calls = ovd.jobs.training_setup.training_batches, list[int]()

    def killed_with_their_workers(*arguments, **options):
        batches_from = real(*arguments, **options)

        def batches(step):
            calls.append(step)
            if len(calls) == 1:  # this pass solves the bias
                yield from batches_from(step)
            yield from islice(batches_from(step), steps)
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError(f"loading step {steps} failed: DataLoader worker is killed by signal: Terminated.")

        return batches

    monkeypatch.setattr(ovd.jobs.training_setup, "training_batches", killed_with_their_workers)
    config = small_config(tmp_path / "run", miniature_world)
    with pytest.raises(SystemExit) as stopped:
        train_from_config(config, evaluate=False)
    assert stopped.value.code == 143
    assert f"stopped by a signal after step {steps}; its checkpoint is saved" in capsys.readouterr().out
    assert (config.output / f"step-00000{steps}").is_dir()
