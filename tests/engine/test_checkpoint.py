"""Checkpoints survive kills, full disks, damage and hostile files, and restore every bit."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ovd.engine import checkpoint
from ovd.engine.checkpoint import SaveError
from ovd.engine.ema import Ema
from ovd.engine.notes import AveragedCheckpoints, EarlyStopNotes, Notes, SampleCounts
from ovd.engine.optim import build_optimizer
from ovd.engine.parameter_groups import GroupSpec, parameter_groups
from ovd.engine.train_state import TrainState
from ovd.engine.weights_file import check_fit, load_into, load_weights
from ovd.files import sha256_of

ROOT = Path(__file__).resolve().parents[2]
FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
NOTES = Notes(
    text_tower="abc",
    classes=("cat", "dog"),
    data={"annotations": "123"},
    first_samples=SampleCounts(3, 4),
    init_sha256="def",
    calibration={"threshold": 0.25},
    early_stop=EarlyStopNotes(((1, 0.5), (2, 0.25)), is_over=True),
    ensemble=AveragedCheckpoints("a", "b", 0.5, "12", "34"),
    has_clip=True,
    before={"point": 0.75},
    is_calibration_pending=True,
)


class Run:
    """A small training run with channels last, batch norm, two parameter groups, one frozen parameter and a weight
    average."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, (1, 2)), nn.PReLU())
        self.module[2].bias.requires_grad_(False)
        self.module.to(memory_format=torch.channels_last)
        specs = {
            "backbone": GroupSpec(list(self.module[:2]), lr_factor=0.1, weight_decay=0.05),
            "head": GroupSpec(list(self.module[2:])),
        }
        self.optimizer = build_optimizer(parameter_groups(self.module, specs), lr=0.01, betas=(0.8, 0.99))
        self.ema = Ema(self.module, decay=0.9)
        self.step = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            generator = torch.Generator().manual_seed(self.step)
            images = torch.randn(2, 3, 6, 9, generator=generator).to(memory_format=torch.channels_last)
            self.optimizer.zero_grad()
            self.module(images).square().mean().backward()
            self.optimizer.step()
            self.ema.update(self.module)
            self.step += 1

    def save(self, run_dir: Path, **options) -> Path:
        return checkpoint.save(
            run_dir,
            TrainState(self.module, self.optimizer, self.ema, self.step),
            config={"train": {"steps": 7}},
            **options,
        )

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        checkpoint.restore(saved, TrainState(self.module, self.optimizer, self.ema))
        self.step = saved.step

    def tensors(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        return (
            {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
            | {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
            | {f"optimizer.{i}.{name}": tensor for i, values in state.items() for name, tensor in values.items()}
        )


def assert_same_bits(first: Run, second: Run) -> None:
    expected, found = first.tensors(), second.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    groups, others = ([group | {"params": None} for group in run.optimizer.param_groups] for run in (first, second))
    assert groups == others


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    check_all_files, first = Run(), Run()
    check_all_files.train(7)
    first.train(3)
    folder = first.save(tmp_path, notes=NOTES)
    assert folder == tmp_path / "step-000003"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)

    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert (saved.folder, saved.step) == (folder, 3)
    assert saved.config == {"train": {"steps": 7}}
    assert saved.notes == NOTES
    assert saved.notes.first_samples.pairs == 4
    resumed = Run(seed=1)
    resumed.restore(saved)
    assert_same_bits(first, resumed)
    resumed.train(4)
    assert_same_bits(check_all_files, resumed)


def test_fused_adamw_state_survives_with_steps_and_layout(tmp_path):
    run = Run()
    run.train(2)
    run.save(tmp_path)
    resumed = Run(seed=1)
    resumed.restore(checkpoint.read(tmp_path / "step-000002"))
    for parameter, state in resumed.optimizer.state.items():
        assert state["step"].dtype == torch.float32
        assert state["step"] == 2
        assert state["exp_avg"].stride() == parameter.stride()
    assert all(group["fused"] for group in resumed.optimizer.param_groups)


def test_checkpoint_without_average_or_optimizer_steps(tmp_path):
    run = Run()
    checkpoint.save(tmp_path, TrainState(run.module, run.optimizer), config={})
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.weights.name == "model.safetensors"
    resumed = Run(seed=1)
    checkpoint.restore(saved, TrainState(resumed.module, resumed.optimizer))
    for name, tensor in run.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="no weight average"):
        resumed.restore(saved)


def test_averaged_weights_are_a_weights_file_of_the_module(tmp_path):
    run = Run()
    run.train(2)
    run.save(tmp_path)
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    module = Run(seed=1).module
    load_into(module, saved.weights)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, run.ema.state_dict()[name])


def test_only_the_newest_are_kept_and_stale_temporaries_go(tmp_path):
    assert checkpoint.latest(tmp_path / "nothing here") is None
    (tmp_path / "step-000009.tmp").mkdir()
    (tmp_path / "step-000009.tmp" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "curves.png").write_bytes(b"")
    assert checkpoint.latest(tmp_path) is None
    run = Run()
    for _ in range(4):
        run.train(1)
        run.save(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "step-000003", "step-000004"]


def test_pruning_never_takes_the_checkpoint_just_written(tmp_path):
    run = Run()
    run.train(5)
    (run.save(tmp_path) / "state.json").unlink()  # damaged, and newer than the checkpoint saved below
    run.step = 3
    run.save(tmp_path, keep=1)
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.step == 3


def test_notes_of_other_versions_lack_some_or_have_more():
    assert all(value != vars(Notes())[name] for name, value in vars(NOTES).items())
    assert Notes.from_json({}) == Notes()
    assert Notes().to_json() == {}
    assert Notes.from_json({"calibration": None, "classes": ["cat"], "later": 1}) == Notes(classes=("cat",))
    going_on = {"early_stop": {"evaluations": [[1, 0.5]]}}
    assert Notes.from_json(going_on).early_stop == EarlyStopNotes(((1, 0.5),), is_over=False)


def test_step_saved_twice_is_kept_if_intact_and_replaced_if_damaged(tmp_path):
    run = Run()
    folder = run.save(tmp_path, notes=Notes(classes=("1",)))
    run.save(tmp_path, notes=Notes(classes=("2",)))
    assert checkpoint.read(folder).notes.classes == ("1",)
    (folder / "model.safetensors").write_bytes(b"")
    run.save(tmp_path, notes=Notes(classes=("3",)))
    assert checkpoint.read(folder).notes.classes == ("3",)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000"]


def test_a_checkpoint_is_replaced_once_its_calibration_is_no_longer_pending(tmp_path):
    run = Run()
    run.save(tmp_path, keep=1)
    run.train(1)
    folder = run.save(tmp_path, keep=1, notes=Notes(is_calibration_pending=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000", "step-000001"]
    run.save(tmp_path, keep=1, notes=Notes(is_calibration_pending=True, classes=("2",)))
    assert checkpoint.read(folder).notes == Notes(is_calibration_pending=True)
    for name in ("3", "4"):
        run.save(tmp_path, keep=1, notes=Notes(classes=(name,)))
        assert checkpoint.read(folder).notes == Notes(classes=("3",))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_link_to_an_older_checkpoint_is_removed_and_its_content_stays(tmp_path):
    """Old checkpoints may be moved to another disk, with a link in their place."""
    run, moved = Run(), tmp_path / "moved"
    run.save(tmp_path / "run").rename(moved)
    (tmp_path / "run" / "step-000000").symlink_to(moved)
    for _ in range(2):
        run.train(1)
        run.save(tmp_path / "run", keep=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-000002"]
    assert checkpoint.read(moved).step == 0


def test_an_old_checkpoint_that_cannot_be_deleted_yet_stops_no_save(tmp_path, monkeypatch, capsys):
    """On a network disk, the folder of a checkpoint that an evaluation reads cannot be deleted."""
    run = Run()
    run.save(tmp_path, keep=1)

    def refuse(folder: Path, **_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        for _ in range(2):
            run.train(1)
            run.save(tmp_path, keep=1)
    assert f"{tmp_path / 'step-000000.old.tmp'} cannot be deleted" in capsys.readouterr().err
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 2
    run.train(1)
    run.save(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_a_checkpoint_that_a_training_replaces_meanwhile_is_not_damaged(tmp_path, monkeypatch):
    run = Run()
    first = run.save(tmp_path)
    real = checkpoint._damage

    def damage(folder, **options):
        if folder == first and first.exists():
            run.train(1)
            run.save(tmp_path)
            shutil.rmtree(first)
        return real(folder, **options)

    monkeypatch.setattr(checkpoint, "_damage", damage)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_steps_past_six_digits_sort_as_numbers(tmp_path):
    run = Run()
    for step in (999_999, 1_000_000):
        run.step = step
        run.save(tmp_path)
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.step == 1_000_000


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_newest_falls_back_and_both_are_named(tmp_path, capsys, name, damage):
    run = Run()
    for _ in range(2):
        run.train(1)
        run.save(tmp_path)
    victim = tmp_path / "step-000002" / name
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    else:
        victim.unlink()
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.step == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert str(tmp_path / "step-000002") in line
    assert str(tmp_path / "step-000001") in line
    assert name in line
    with pytest.raises(ValueError, match="step-000002"):
        checkpoint.latest(tmp_path, strict=True)
    with pytest.raises(ValueError, match="step-000002"):
        checkpoint.read(tmp_path / "step-000002")


def test_attached_tensors_come_back_and_are_not_written_where_there_are_none(tmp_path):
    run = Run()
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    attached = {"rows": rows[::2], "mask": torch.tensor([True, False])}
    folder = run.save(tmp_path, attached=attached)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "attached.safetensors"])
    found = checkpoint.latest(tmp_path, strict=True)
    assert found is not None
    assert found.attached().keys() == attached.keys()
    for name, tensor in attached.items():
        assert found.attached()[name].dtype == tensor.dtype
        assert torch.equal(found.attached()[name], tensor)
    resumed = Run(seed=1)
    resumed.restore(found)
    assert_same_bits(run, resumed)
    nothing: tuple[dict[str, torch.Tensor] | None, ...] = (None, {})
    for step, none in enumerate(nothing, start=1):
        run.step = step
        folder = run.save(tmp_path, attached=none)
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        assert checkpoint.read(folder).attached() == {}


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_attached_tensors_are_damage_of_the_checkpoint(tmp_path, capsys, damage):
    run = Run()
    for _ in range(2):
        run.train(1)
        run.save(tmp_path, attached={"rows": torch.ones(3, 4)})
    assert checkpoint.read(tmp_path / "step-000002").step == 2
    victim = tmp_path / "step-000002" / "attached.safetensors"
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(content[:-1])
    else:
        victim.unlink()
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.step == 1
    assert "attached.safetensors" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"step-000002.*attached\.safetensors"):
        checkpoint.read(tmp_path / "step-000002")


@pytest.mark.parametrize("name", FILES)
def test_an_evaluation_needs_and_reads_the_averaged_weights_alone(tmp_path, monkeypatch, name):
    run = Run()
    for _ in range(2):
        run.train(1)
        run.save(tmp_path)
    (tmp_path / "step-000002" / name).unlink()
    read = set()

    def notice(path: Path) -> str:
        read.add(path.name)
        return sha256_of(path)

    monkeypatch.setattr(checkpoint, "sha256_of", notice)
    saved = checkpoint.latest(tmp_path, check_all_files=False)
    assert saved is not None
    assert saved.step == (2 if name in ("model.safetensors", "optimizer.safetensors") else 1)
    assert not {"model.safetensors", "optimizer.safetensors"} & read
    assert checkpoint.read(saved.folder, check_all_files=False) == saved


def test_all_damaged_stops_instead_of_starting_over(tmp_path):
    run = Run()
    for _ in range(2):
        run.train(1)
        (run.save(tmp_path) / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"step-000002.*step-000001"):
        checkpoint.latest(tmp_path)


def assert_older_is_kept(run_dir: Path, older: Run) -> None:
    assert [path.name for path in run_dir.iterdir()] == ["step-000001"]
    saved = checkpoint.latest(run_dir, strict=True)
    assert saved is not None
    resumed = Run(seed=1)
    resumed.restore(saved)
    assert_same_bits(older, resumed)


@pytest.mark.parametrize("limit_bytes", [0, 500, 3000])
def test_full_disk_keeps_the_older_checkpoint(tmp_path, limit_bytes):
    older, run = Run(), Run()
    older.train(1)
    run.train(1)
    run.save(tmp_path, keep=1)
    run.train(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with pytest.raises(SaveError, match=r"step 2 .*the newest checkpoint is .*step-000001"):
            run.save(tmp_path, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_older_is_kept(tmp_path, older)
    run.save(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


@pytest.mark.parametrize("failing_call", range(1, 8))
def test_no_space_at_any_flush_leaves_a_checkpoint(tmp_path, monkeypatch, failing_call):
    older, run = Run(), Run()
    older.train(1)
    run.train(1)
    run.save(tmp_path, keep=1)
    run.train(1)
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SaveError, match="No space left"):
        run.save(tmp_path, keep=1)
    if failing_call <= 6:  # flushes of five files and their folder; the seventh follows the rename
        assert_older_is_kept(tmp_path, older)
    else:
        saved = checkpoint.latest(tmp_path, strict=True)
        assert saved is not None
        assert saved.step == 2


class Killed(BaseException):
    """Raised in place of a kill; no code catches it."""


@pytest.mark.parametrize(
    ("is_replaced", "steps"),
    [
        # The rename follows six flushes. After it come a flush, and the rename and removal of the older checkpoint.
        (False, [1] * 7 + [2] * 4),
        # Before it, the checkpoint whose calibration was pending is renamed and removed.
        (True, [2] * 7 + [1] * 2 + [2] * 4),
    ],
)
def test_killed_at_any_operation_on_the_disk_the_newest_or_the_one_before_remains(
    is_replaced, steps, tmp_path, monkeypatch
):
    rename, remove = Path.rename, shutil.rmtree
    calls, killed_in, found = 0, 0, []

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == killed_in:
            raise Killed

    def count_and_rename(path: Path, other: Path) -> Path:
        count()
        return rename(path, other)

    def remove_one_file_first(folder: Path, **_: object) -> None:
        (folder / "model.safetensors").unlink()
        count()
        remove(folder)

    while calls >= killed_in:
        run_dir, run = tmp_path / str(killed_in), Run()
        run.train(1)
        run.save(run_dir, keep=1)
        run.train(1)
        if is_replaced:
            run.save(run_dir, keep=1, notes=Notes(is_calibration_pending=True))
        calls, killed_in = 0, killed_in + 1
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "fsync", lambda _: count())
            patch.setattr(Path, "rename", count_and_rename)
            patch.setattr(shutil, "rmtree", remove_one_file_first)
            run.save(run_dir, keep=1)
        newest = checkpoint.latest(run_dir, strict=True)
        assert newest is not None
        found.append(newest.step)
        run.train(1)
        run.save(run_dir, keep=1)
        assert [path.name for path in run_dir.iterdir()] == ["step-000003"]
    assert found == steps


KILL_SAVES = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from ovd.engine import checkpoint
from ovd.engine.ema import Ema
from ovd.engine.train_state import TrainState

run_dir, repetitions = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)  # a forked child cannot use its parent's threads
randomness = random.Random(0)

def build():
    module = torch.nn.Linear(300, 300)
    return module, torch.optim.AdamW(module.parameters(), fused=True), Ema(module, 0.9)

def save_next(folder, step, module, optimizer, ema):
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.nn.init.constant_(module.weight, step)
    checkpoint.save(folder, TrainState(module, optimizer, ema, step), config={}, keep=1)

def save_for_ever(step):
    objects = build()
    while True:
        step += 1
        save_next(run_dir, step, *objects)

save_next(run_dir / "warm-up", 0, *build())  # imports what the first step and save import
start = time.monotonic()
save_next(run_dir / "warm-up", 1, *build())
one_save_s = time.monotonic() - start

last = inside = kills = 0
while kills < repetitions or not (last and inside):  # a busy machine may be slow to begin the first save
    kills += 1
    child = os.fork()
    if child == 0:
        save_for_ever(last)
    time.sleep(randomness.uniform(0, 4 * one_save_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    inside += any(run_dir.glob("*.tmp"))
    newest = checkpoint.latest(run_dir, strict=True)
    if newest is None:
        assert last == 0
        continue
    assert newest.step >= last, (newest.step, last)
    last = newest.step
    module, optimizer, ema = build()
    checkpoint.restore(newest, TrainState(module, optimizer, ema))
    assert bool((module.weight == last).all()), last
print(last, inside)
"""


@pytest.mark.parametrize("repetitions", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_instant_something_intact_remains(tmp_path, repetitions):
    result = subprocess.run(
        [sys.executable, "-c", KILL_SAVES, str(tmp_path), str(repetitions)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    last_step, num_killed_inside = map(int, result.stdout.split())
    assert last_step > 0
    assert num_killed_inside > 0


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".safetensors"])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, ending):
    witness = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    path = tmp_path / f"weights{ending}"
    torch.save({"weight": Payload()}, path)
    with pytest.raises(ValueError, match=r"weights\.\w+ "):
        load_weights(path)
    assert not witness.exists()
    path = path.rename(tmp_path / "renamed.pt")
    torch.load(path, weights_only=False)  # the payload does run where pickles are allowed
    assert witness.exists()


def test_weights_of_every_format_are_equal(tmp_path):
    module = Run().module
    state = module.state_dict()
    Run().save(tmp_path)
    paths = [tmp_path / "step-000000" / "model.safetensors"]
    for ending in (".pt", ".pth", ".bin"):
        paths.append(tmp_path / f"weights{ending}")
        torch.save(state, paths[-1])
    for path in paths:
        found = load_weights(path)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_other_content_is_a_clear_error(tmp_path):
    nested, listed, empty = tmp_path / "nested.pt", tmp_path / "list.pt", tmp_path / "empty.pth"
    code = tmp_path / "code.pt"
    torch.save({"weight": Path("a")}, code)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, nested)
    torch.save([torch.zeros(1)], listed)
    empty.write_bytes(b"")
    for path, message in (
        (nested, r"\(state_dict, epoch\)"),
        (listed, "contains a list"),
        (empty, r"cannot be loaded: it is damaged, .* \(EOFError\); copy the file again"),
        (code, r"^\S*code\.pt cannot be loaded: .* \(UnpicklingError\); .* save only the module's state_dict$"),
        (tmp_path / "absent.pt", "no weights file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(path)
    (tmp_path / "model.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="must end in"):
        load_weights(tmp_path / "model.pkl")


def test_misfits_are_listed_up_to_twenty():
    module = nn.Sequential(*[nn.Linear(2, 2) for _ in range(15)])
    check_fit(module, module.state_dict())
    state = dict(module.state_dict())
    state["3.weight"] = torch.zeros(2, 3)
    state["text.proj"] = torch.zeros(4)
    del state["0.bias"]
    with pytest.raises(ValueError, match="does not match") as caught:
        check_fit(module, state, source="file.pt")
    message = str(caught.value)
    assert message.startswith("file.pt does not match Sequential: ")
    for problem in ("missing 0.bias (2,)", "unexpected text.proj (4,)", "3.weight is (2, 3) instead of (2, 2)"):
        assert problem in message
    with pytest.raises(ValueError, match=r"and 10 more$") as caught:
        check_fit(module, {})
    assert str(caught.value).count("missing") == 20


def test_optimizer_of_another_build_is_refused(tmp_path):
    run = Run()
    run.train(1)
    run.save(tmp_path)
    saved = checkpoint.read(tmp_path / "step-000001")
    other_groups = build_optimizer(parameter_groups(run.module, {"all": GroupSpec([run.module])}), lr=0.01)
    with pytest.raises(ValueError, match=r"parameter groups .*\('backbone', 1\).*\('all', 2\)"):
        checkpoint.restore(saved, TrainState(run.module, other_groups))


@pytest.mark.parametrize(("names", "split"), [(("head", "backbone"), 2), (("backbone", "head"), 1)])
def test_as_many_groups_of_other_names_or_sizes_are_refused(tmp_path, names, split):
    run = Run()
    run.train(1)
    run.save(tmp_path)
    parts = list(run.module[:split]), list(run.module[split:])
    specs = {name: GroupSpec(part) for name, part in zip(names, parts, strict=True)}
    others = build_optimizer(parameter_groups(run.module, specs), lr=0.01)
    assert len(others.param_groups) == len(run.optimizer.param_groups)
    with pytest.raises(ValueError, match=r"parameter groups \(name, number of parameters\) are"):
        checkpoint.restore(checkpoint.read(tmp_path / "step-000001"), TrainState(run.module, others))


def test_optimizer_over_parameters_in_another_order_is_refused(tmp_path):
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    there, here = (
        build_optimizer(parameter_groups(module, {"all": GroupSpec(members)}), lr=0.01)
        for members in (list(module), list(module)[::-1])
    )
    module(torch.ones(1, 2)).sum().backward()
    there.step()
    checkpoint.save(tmp_path, TrainState(module, there, step=1), config={})
    with pytest.raises(
        ValueError, match=r"optimizer\.safetensors: 0\.exp_avg.* has the shape \(3, 2\), but its parameter \(2, 3\)"
    ):
        checkpoint.restore(checkpoint.read(tmp_path / "step-000001"), TrainState(module, here))


def test_tied_parameters_are_named(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are the same tensor"):
        checkpoint.save(tmp_path, TrainState(module, optimizer), config={})
    assert not list(tmp_path.iterdir())


def test_tensors_without_elements_are_not_one_tensor(tmp_path):
    module = nn.Linear(2, 2)
    module.register_buffer("first", torch.zeros(0))
    module.register_buffer("second", torch.zeros(0, 3))
    checkpoint.save(tmp_path, TrainState(module, torch.optim.AdamW(module.parameters(), fused=True)), config={})
    found = checkpoint.load_weights(tmp_path / "step-000000" / "model.safetensors")
    assert (found["first"].shape, found["second"].shape) == ((0,), (0, 3))


def test_bad_arguments_write_nothing(tmp_path):
    run = Run()
    with pytest.raises(ValueError, match="cannot be stored"):
        run.save(tmp_path, notes=Notes(calibration={"path": Path("x")}))
    with pytest.raises(ValueError, match="keep"):
        run.save(tmp_path, keep=0)
    assert not list(tmp_path.iterdir())


def test_manifest_holds_sha256_of_each_file(tmp_path):
    folder = Run().save(tmp_path)
    lines = subprocess.run(["sha256sum", *FILES[:-1]], cwd=folder, capture_output=True, text=True, check=True).stdout
    expected = {name: digest for digest, name in map(str.split, lines.splitlines())}
    assert json.loads((folder / "manifest.json").read_text()) == expected
