"""The weighted average of two runs: exact at both ends, a mean in between, and a run like any other."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import run_tool
from torch import Tensor, nn

from ovd.build.detector import build_detector
from ovd.build.trained import load_detector
from ovd.clip.load import load_clip
from ovd.config.alignment import AlignConfig
from ovd.config.training import TrainConfig
from ovd.engine import checkpoint
from ovd.engine.ema import Ema
from ovd.engine.ensemble import interpolate, save_ensemble
from ovd.engine.notes import AveragedCheckpoints, EarlyStopNotes, Notes
from ovd.engine.train_state import TrainState
from ovd.engine.weights_file import load_weights
from ovd.files import sha256_of
from ovd.text.encoder import text_tower_fingerprint

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = {
    "output": "first",
    "clip": {"name": "tiny"},
    "detector": {"channels": 32, "num_convs": 1},
    "train": {"steps": 1},
}
NOTES = Notes(text_tower="abc")


def save_run(run_dir: Path, seed: int, *, config=CONFIG, notes=NOTES, width: int = 4) -> checkpoint.Checkpoint:
    """Save two checkpoints of a run whose averaged weights differ from the module's; return the last."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.PReLU())
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    ema = Ema(module, decay=0.9)
    for step in (1, 2):
        module(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        ema.update(module)
        checkpoint.save(run_dir, TrainState(module, optimizer, ema, step), config=config, notes=notes)
    found = checkpoint.latest(run_dir)
    assert found is not None
    return found


def weights_of(run_dir: Path) -> dict[str, Tensor]:
    found = checkpoint.latest(run_dir)
    assert found is not None
    return load_weights(found.weights)


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    first, second = save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 1)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="/c cannot be written to"):
        save_ensemble(first, second, weight=0.25, output=tmp_path / "c")
    assert not list((tmp_path / "c").iterdir())


def test_an_ensemble_is_the_mean_of_the_averaged_weights(tmp_path):
    first, second = save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 1)
    folder = save_ensemble(first, second, weight=0.25, output=tmp_path / "c")
    assert folder == tmp_path / "c" / "step-000000"
    found = weights_of(tmp_path / "c")
    one, other = (load_weights(item.folder / "ema.safetensors") for item in (first, second))
    assert found.keys() == one.keys()
    for name, tensor in found.items():
        assert tensor.dtype == one[name].dtype
        torch.testing.assert_close(tensor.double(), 0.75 * one[name].double() + 0.25 * other[name].double())
    assert not torch.equal(found["0.weight"], one["0.weight"])

    saved = checkpoint.read(folder)
    assert saved.config == CONFIG | {"output": str(tmp_path / "c")}
    assert saved.notes.text_tower == "abc"
    assert saved.notes.ensemble == AveragedCheckpoints(
        first=str(first.folder),
        first_sha256=sha256_of(first.weights),
        second=str(second.folder),
        second_sha256=sha256_of(second.weights),
        weight=0.25,
    )


def test_it_was_trained_on_the_names_of_both_and_keeps_nothing_of_how_they_ended(tmp_path):
    of_start = replace(NOTES, classes=("Cat", "dog"))
    early = replace(
        NOTES, classes=("gizmo", "cat"), early_stop=EarlyStopNotes(((1, 0.5),)), is_calibration_pending=True
    )
    first, second = save_run(tmp_path / "a", 0, notes=of_start), save_run(tmp_path / "b", 1, notes=early)
    for weight, classes in ((0.0, ("Cat", "dog")), (0.5, ("gizmo", "cat", "dog")), (1.0, ("gizmo", "cat"))):
        saved = checkpoint.read(save_ensemble(first, second, weight=weight, output=tmp_path / str(weight)))
        assert saved.notes.classes == classes
        assert saved.notes.early_stop is None
        assert not saved.notes.is_calibration_pending


def test_a_calibration_stays_with_the_weights_that_it_was_fitted_to(tmp_path):
    runs = []
    for number in (0, 1):
        given: dict[str, Any] = {
            "tensors": {"a": torch.tensor([float(number)])},
            "config": CONFIG,
            "notes": replace(NOTES, calibration={"threshold": 0.5}),
            "attached": {"trained_text": torch.ones(2, 3), "mean_example": torch.ones(3)},
        }
        runs.append(checkpoint.read(checkpoint.save_weights(tmp_path / str(number), **given)))
    for weight, kept in ((0.0, set()), (0.5, set()), (1.0, {"trained_text"})):
        saved = checkpoint.read(save_ensemble(*runs, weight=weight, output=tmp_path / f"average-{weight}"))
        assert saved.attached().keys() == {"mean_example"} | kept
        assert (saved.notes.calibration is not None) == bool(kept)


def test_its_ends_are_the_two_runs_bit_for_bit(tmp_path):
    first, second = save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 1)
    for weight, end in ((0, first), (1, second)):
        save_ensemble(first, second, weight=weight, output=tmp_path / str(weight))
        assert bits(weights_of(tmp_path / str(weight))) == bits(load_weights(end.weights))
    signed = {"a": torch.tensor([-0.0, math.inf, 1e-45])}
    negated = {"a": -signed["a"]}
    assert bits(interpolate(signed, negated, 0)) == bits(signed)
    assert bits(interpolate(signed, negated, 1)) == bits(negated)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_of_a_run_with_itself_is_that_run(dtype):
    tensors = {"weight": torch.randn(100).to(dtype), "steps": torch.tensor(3), "empty": torch.zeros(0, 2)}
    for weight in (0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0):
        found = interpolate(tensors, {name: tensor.clone() for name, tensor in tensors.items()}, weight)
        assert found.keys() == tensors.keys()
        for name, tensor in found.items():
            assert tensor.dtype == tensors[name].dtype
            assert torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize("weight", [-0.01, 1.01, math.nan])
def test_a_weight_outside_its_range_is_refused(tmp_path, weight):
    first, second = save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 1)
    with pytest.raises(ValueError, match=r"weight is (nan|-0\.01|1\.01); it must be from 0 to 1"):
        save_ensemble(first, second, weight=weight, output=tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("config", "notes", "message"),
    [
        (
            CONFIG | {"detector": {"channels": 64, "num_convs": 1}},
            NOTES,
            r"in: detector\.channels \(32 and 64\)$",
        ),
        (CONFIG | {"clip": {"name": "RN50"}}, NOTES, r"differ in: clip\.name \('tiny' and 'RN50'\)$"),
        (CONFIG, Notes(text_tower="xyz"), r"differ in: text tower \('abc' and 'xyz'\)$"),
        (
            {"clip": {"name": "RN50"}, "detector": {"channels": 64, "num_convs": 2}},
            Notes(),
            r"clip\.name .*detector\.channels .*detector\.num_convs .*text tower \('abc' and None\)$",
        ),
    ],
)
def test_runs_of_another_model_are_refused_before_their_weights_are_read(tmp_path, config, notes, message):
    first, second = save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 1, config=config, notes=notes)
    for file in tmp_path.glob("*/step-*/*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=message):
        save_ensemble(first, second, weight=0.5, output=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_low_rank_adapters_are_not_averaged(tmp_path):
    for rank in (4, 0):
        config = CONFIG | {"expert": {"learn": "path", "rank": rank}}
        first, second = (save_run(tmp_path / f"{name}{rank}", 0, config=config) for name in "ab")
        with pytest.raises(ValueError, match="differ in: low-rank adapters") if rank else nullcontext():
            save_ensemble(first, second, weight=0.5, output=tmp_path / f"c{rank}")


def test_how_a_detector_learned_and_settings_of_one_version_alone_do_not_matter(tmp_path):
    first = save_run(tmp_path / "a", 0)
    learned_otherwise = CONFIG | {"detector": CONFIG["detector"] | {"frozen_layers": 2, "drop_path": 0.1}}
    save_ensemble(first, save_run(tmp_path / "b", 1, config=learned_otherwise), weight=0.5, output=tmp_path / "c")
    assert len(weights_of(tmp_path / "c")) > 0


def test_tensors_that_do_not_correspond_are_named(tmp_path):
    first, second = save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 1, width=5)
    with pytest.raises(ValueError, match=r"0\.weight is torch\.float32 \(4, 3\) and torch\.float32 \(5, 3\)") as caught:
        save_ensemble(first, second, weight=0.5, output=tmp_path / "c")
    assert str(first.weights) in str(caught.value)
    one = {"a": torch.zeros(2), "steps": torch.tensor(3), "only": torch.zeros(1)}
    other = {"a": torch.zeros(2).half(), "steps": torch.tensor(4)}
    for weight in (0, 0.5):
        with pytest.raises(ValueError, match=r"only is only in one.*a is torch\.float32.*steps is torch\.int64, which"):
            interpolate(one, other, weight)
    with pytest.raises(ValueError, match=r"; and 10 more$"):
        interpolate({str(number): torch.zeros(1) for number in range(30)}, {}, 0.5)


def test_learned_names_are_averaged_with_those_of_the_same_classes_only(tmp_path):
    def save_names(name: str, *classes: str) -> checkpoint.Checkpoint:
        tensors = {"name_offsets": torch.rand(2, 8)}
        notes = Notes(text_tower="abc", classes=classes)
        config = CONFIG | {"expert": {"learn": "names"}}
        return checkpoint.read(checkpoint.save_weights(tmp_path / name, tensors=tensors, config=config, notes=notes))

    first, second = save_names("first", "anchor", "gear"), save_names("second", "anchor", "gear")
    other = save_names("other", "gear", "anchor")
    with pytest.raises(ValueError, match=r"they differ in: the classes whose names were learned"):
        save_ensemble(first, other, weight=0.5, output=tmp_path / "mean")
    save_ensemble(first, second, weight=0.5, output=tmp_path / "mean")
    found = checkpoint.latest(tmp_path / "mean")
    assert found is not None
    assert found.notes.classes == ("anchor", "gear")


def test_a_run_is_never_overwritten(tmp_path):
    first, second = save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 1)
    for output in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(ValueError, match="already contains a run"):
            save_ensemble(first, second, weight=0.5, output=output)
        assert sorted(path.name for path in output.iterdir()) == ["step-000001", "step-000002"]


def test_an_ensemble_cannot_be_resumed_and_its_damage_is_seen(tmp_path):
    folder = save_ensemble(save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 1), weight=0.5, output=tmp_path / "c")
    saved = checkpoint.read(folder)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.PReLU())
    before = bits(module.state_dict())
    for ema in (None, Ema(module, 0.9)):
        with pytest.raises(ValueError, match=r"step-000000 has only weights and cannot be resumed.*init_from"):
            checkpoint.restore(saved, TrainState(module, torch.optim.AdamW(module.parameters()), ema))
    assert bits(module.state_dict()) == before

    content = bytearray(saved.weights.read_bytes())
    content[-1] ^= 1
    saved.weights.write_bytes(content)
    for check_all_files in (True, False):
        with pytest.raises(ValueError, match=r"damaged checkpoint.*model\.safetensors does not match"):
            checkpoint.latest(tmp_path / "c", check_all_files=check_all_files)


def test_the_tool_writes_a_run_that_opens_as_a_detector(tmp_path):
    config = TrainConfig.model_validate(CONFIG | {"output": tmp_path})
    states = []
    for seed, name in enumerate(("base", "selftrained")):
        torch.manual_seed(seed)
        clip = load_clip("tiny")
        detector = build_detector(config, clip)
        with torch.no_grad():
            detector.log_scale.fill_(math.log(50 * (1 + seed)))
            detector.threshold.fill_(0.2 * (1 + seed))
        states.append({name: tensor.clone() for name, tensor in detector.state_dict().items()})
        checkpoint.save(
            tmp_path / name,
            TrainState(detector, torch.optim.SGD(detector.parameters()), Ema(detector, 0.9), step=1),
            config=config.model_dump(mode="json"),
            notes=Notes(text_tower=text_tower_fingerprint(clip), calibration={} if name == "base" else None),
        )

    tool = ("tools/ensemble.py", tmp_path / "base", tmp_path / "selftrained")
    printed = run_tool(*tool, "--weight", "0.25", "--output", tmp_path / "mean").stdout
    assert "0.75 x" in printed
    assert f"calibrated: {tmp_path / 'base' / 'step-000001'}; the average is not" in printed
    mean = load_detector(tmp_path / "mean")
    assert mean.config == config.model_copy(update={"output": tmp_path / "mean"})
    for name, tensor in mean.detector.state_dict().items():
        expected = 0.75 * states[0][name].double() + 0.25 * states[1][name].double()
        torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6, msg=name)
    assert mean.detector.scale.item() == pytest.approx(50 * 2**0.25)  # the scale is a geometric mean
    assert mean.detector.bias.item() == pytest.approx(-50 * 2**0.25 * 0.25)

    run_tool(*tool, "--weight", "1", "--output", tmp_path / "end")
    assert bits(load_detector(tmp_path / "end").detector.state_dict()) == bits(states[1])

    for options, message in (
        (("--weight", "2", "--output", tmp_path / "other"), "'2' is not a number from 0 to 1"),
        (("--output", tmp_path / "mean"), "already contains a run"),
    ):
        assert message in run_tool(*tool, *options, expect=2).stderr


def test_the_tool_refuses_the_runs_of_alignments(tmp_path):
    config = AlignConfig.model_validate({"output": tmp_path, "train": {"steps": 2}})
    for seed, name in enumerate("ab"):
        save_run(tmp_path / name, seed, config=config.model_dump(mode="json"), notes=Notes())
    tool = ("tools/ensemble.py", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "mean")
    told = run_tool(*tool, expect=2).stderr
    assert "a/step-000002/state.json: this is a config for ovd align-backbone" in told
    assert not (tmp_path / "mean").exists()


def test_the_tool_refuses_an_expert_and_a_detector(tmp_path):
    save_run(tmp_path / "detector", 0)
    expert = save_run(tmp_path / "expert", 1, config=CONFIG | {"init_from": "detector", "expert": {"own_layers": 0}})
    output = ("--output", tmp_path / "mean")
    told = run_tool("tools/ensemble.py", tmp_path / "detector", tmp_path / "expert", *output, expect=2).stderr
    assert f"{expert.folder} is the run of an expert" in told
    assert "with its detector" in told
    assert not (tmp_path / "mean").exists()
