"""The log of a run: no step twice after a resume, strict JSON, readable lines, curves and TensorBoard on disk."""

import io
import json
import math
import re
import subprocess
import sys
import time
import types
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ovd.engine import curves, log
from ovd.engine.log import NoLog, RunLog, format_duration, open_log
from ovd.progress import progress


def read(run_dir: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def train(run_log: RunLog | NoLog, steps: range) -> None:
    for step in steps:
        run_log.train(step, {"class": 1 / step, "box": 0.5}, lr=0.01, num_images=4)


def test_resume_cuts_later_steps_and_a_torn_line(tmp_path):
    with RunLog(tmp_path, total_steps=8) as first:
        first.evaluation(0, {"AP": 0.1})
        train(first, range(1, 6))
        first.evaluation(5, {"AP": 0.2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    with RunLog(tmp_path, total_steps=8, resumed_step=3) as second:
        train(second, range(4, 9))
    records = read(tmp_path)
    assert [(record["kind"], record["step"]) for record in records] == [("evaluation", 0)] + [
        ("train", step) for step in range(1, 9)
    ]
    assert records[3]["losses"] == {"class": 1 / 3, "box": 0.5}
    assert records[3]["lr"] == 0.01
    assert records[3]["images_per_s"] > 0


def test_an_evaluation_makes_no_step_slower(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with RunLog(tmp_path, total_steps=40) as run_log:
        for step in range(1, 21):
            now[0] += 2
            train(run_log, range(step, step + 1))
            if step in (1, 10):
                now[0] += 500
                run_log.evaluation(step, {"AP": 0.1})
    assert [record["images_per_s"] for record in read(tmp_path) if record["kind"] == "train"] == [2.0] * 20
    assert "  2.0 images/s" in capsys.readouterr().out


def test_an_evaluation_is_printed_in_per_cent_and_logged_as_it_is(tmp_path, capsys):
    metrics = {"AP": 0.04123, "APs": -1.0}
    with RunLog(tmp_path, total_steps=9) as run_log:
        run_log.evaluation(3, metrics)
    assert "step 3/9  evaluation  AP 4.12  APs -\n" in capsys.readouterr().out
    assert read(tmp_path)[0]["metrics"] == metrics


def test_a_run_from_the_start_and_a_repeated_evaluation_leave_one_record_each(tmp_path):
    for value in (0.1, 0.2):
        with RunLog(tmp_path, total_steps=2) as run_log:
            run_log.evaluation(0, {"AP": value})
            train(run_log, range(1, 3))
            run_log.evaluation(2, {"AP": value})
            run_log.evaluation(2, {"AP": value + 1})
    records = read(tmp_path)
    assert [(record["kind"], record["step"]) for record in records] == [
        ("evaluation", 0),
        ("train", 1),
        ("train", 2),
        ("evaluation", 2),
    ]
    assert records[0]["metrics"]["AP"] == 0.2
    assert records[3]["metrics"]["AP"] == 1.2


def test_damage_before_the_last_line_is_named(tmp_path):
    for content in (b'{"kind": "tr', b"\xff\xfe"):
        (tmp_path / "metrics.jsonl").write_bytes(content + b'\n{"kind": "train", "step": 2}\n')
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1"):
            RunLog(tmp_path, total_steps=4, resumed_step=2)


@pytest.mark.pictures
def test_not_finite_values_are_null_and_drawn_as_gaps(tmp_path):
    with RunLog(tmp_path, total_steps=2) as run_log:
        run_log.evaluation(0, {"APr": math.nan, "AP": 0.5})
        run_log.train(1, {"class": math.inf}, lr=0.1, num_images=0)
    first, second = read(tmp_path)
    assert first["metrics"] == {"APr": None, "AP": 0.5}
    assert second["losses"] == {"class": None}
    assert (tmp_path / "curves.png").is_file()


def test_console_in_a_log_file_has_one_line_every_n_steps(tmp_path, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(log, "CONSOLE_INTERVAL", 10)
    with RunLog(tmp_path, total_steps=25, resumed_step=4) as run_log:
        for step in range(5, 26):
            now[0] += 300.0
            run_log.train(step, {"class": float(step), "box": 1.0}, lr=1e-4, num_images=6)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 10/25", "step 20/25", "step 25/25"]
    # The mean is that of steps 11 to 20, at six images in 300 s, with five steps of 300 s to go.
    assert "loss 16.500 (class 15.500 box 1.000)  lr 1.00e-04  0.0 images/s  ETA 0:25:00" in lines[1]
    assert re.search(r"\d\.\d GiB$", lines[1])
    assert read(tmp_path)[0]["images_per_s"] == pytest.approx(6 / 300)


def test_console_in_a_terminal_redraws_one_line(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(log.sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(log, "CONSOLE_INTERVAL", 2)
    with RunLog(tmp_path, total_steps=4) as run_log:
        train(run_log, range(1, 4))
        run_log.message("saved")
    # A terminal clears the row at a carriage return with erase, so only the rest of the row is visible.
    rows = [row.rpartition("\r\x1b[K")[2] for row in terminal.getvalue().split("\n")]
    assert rows[0].startswith("step 2/4")
    assert rows[1:] == ["saved", "", ""]
    redrawn = [part for part in terminal.getvalue().split("\r\x1b[K") if part and "\n" not in part]
    assert [part[:8] for part in redrawn] == ["step 1/4", "step 3/4"]
    assert all(len(part) < 40 for part in redrawn)


def test_a_warning_takes_the_place_of_the_redrawn_line(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(log.sys, "stdout", terminal)
    monkeypatch.setattr(log.sys, "stderr", terminal)
    with RunLog(tmp_path, total_steps=4) as run_log:
        train(run_log, range(1, 2))
        run_log.warning("the disk is full")
    rows = [row.rpartition("\r\x1b[K")[2] for row in terminal.getvalue().split("\n")]
    assert rows[0] == "warning: the disk is full"


def test_other_ranks_show_nothing_but_warnings(monkeypatch, capsys):
    monkeypatch.setattr(log, "rank", lambda: 3)
    with NoLog() as no_log:
        train(no_log, range(1, 3))
        no_log.message("warning: a message that begins like one")
        no_log.warning("the disk is full")
    assert capsys.readouterr() == ("", "warning: rank 3: the disk is full\n")


@pytest.mark.pictures
def test_tensorboard_and_curves_hold_what_was_logged(tmp_path):
    with RunLog(tmp_path, total_steps=60) as run_log:
        train(run_log, range(1, 61))
        run_log.evaluation(60, {"AP": 0.25})
        assert not (tmp_path / "curves.png").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("evaluation/AP")] == [(60, 0.25)]
    losses = [event.value for event in events.Scalars("loss/class")]
    np.testing.assert_allclose(losses, 1 / np.arange(1, 61), rtol=1e-6)
    with Image.open(tmp_path / "curves.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert not list(tmp_path.glob("*.tmp"))


def test_tensorboard_that_cannot_write_ends_alone(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with RunLog(tmp_path, total_steps=4) as run_log:
        train(run_log, range(1, 2))
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", fail)
        train(run_log, range(2, 5))
    assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("warning: TensorBoard's log ends at step 2 ([Errno 28]") == 1


def test_lines_that_a_full_disk_refused_are_written_later(tmp_path, monkeypatch, capsys):
    with RunLog(tmp_path, total_steps=4) as run_log:
        file, room = run_log._metrics, 10

        class AlmostFull:
            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

            def write(self, content: bytes) -> int:
                nonlocal room
                if not room:
                    raise OSError(28, "No space left on device")
                written = file.write(content[:room])
                room -= written
                return written

        monkeypatch.setattr(run_log, "_metrics", AlmostFull())
        train(run_log, range(1, 3))  # only ten bytes of it can be written
        room = 10**6
        train(run_log, range(3, 5))
    assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("metrics.jsonl will be written at the next step") == 2


def test_a_metric_that_there_is_not_is_not_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    records = [
        {"kind": "train", "step": 1, "lr": 0.1, "losses": {"class": 1.0}},
        {"kind": "evaluation", "step": 1, "metrics": {"AP": 0.25, "APl": -1}},
        {"kind": "gates", "step": 1, "gates": {"mean/P3": 0.5}},
    ]
    curves.draw_training_curves(records, tmp_path / "curves.png")
    _, _, metrics, gates = drawn[0].axes
    assert [line.get_label() for line in metrics.lines] == ["AP"]
    assert [line.get_marker() for line in gates.lines] == ["."]  # a single point needs a marker, as no line shows it


class FakeWandb(types.ModuleType):
    """A stand-in for wandb that keeps the logged values by run id."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, list] = {}

    def init(self, *, project: str, name: str, id: str, resume: str, dir: Path, config: dict) -> "FakeWandb":
        assert (project, name, resume, config) == ("birds", dir.name, "allow", {"a": 1})
        self.logged = self.runs.setdefault(id, [])
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.logged.append({"exit_code": exit_code})


def test_wandb_gets_all_steps_of_a_run_and_its_resumption_and_a_new_run_is_another(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)

    def run(resumed: int, last: int) -> None:
        with open_log(tmp_path, 8, resumed, wandb="birds", config={"a": 1}) as run_log:
            for step in range(resumed + 1, last + 1):
                run_log.train(step, {"class": 1 / step}, lr=0.01, num_images=4)
            run_log.evaluation(last, {"AP": 0.2})
            if last < 8:
                raise KeyboardInterrupt

    for resumed, last in ((0, 4), (0, 5), (3, 8)):
        with nullcontext() if last == 8 else pytest.raises(KeyboardInterrupt):
            run(resumed, last)
    dead, logged = fake.runs.values()
    assert [values["step"] for values in dead if "loss/class" in values] == [1, 2, 3, 4]
    assert {values["step"]: values["loss/class"] for values in logged if "loss/class" in values} == {
        step: 1 / step for step in range(1, 9)
    }
    assert [values["step"] for values in logged if "evaluation/AP" in values] == [5, 8]
    assert [values["exit_code"] for values in logged if "exit_code" in values] == [1, 0]


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"needs the package wandb: pip install 'ovd\[wandb\]'"):
        open_log(tmp_path, 8, 0, wandb="birds", config={})


def test_curves_of_an_empty_log_are_not_drawn(tmp_path):
    RunLog(tmp_path, total_steps=1).close()
    assert not (tmp_path / "curves.png").exists()


def test_curves_are_running_means(tmp_path, monkeypatch):
    drawn: dict[str, curves.Figure] = {}

    def savefig(figure: curves.Figure, file: object, **_: object) -> None:
        drawn["figure"] = figure

    monkeypatch.setattr(curves.Figure, "savefig", savefig)
    records = [{"kind": "train", "step": s, "lr": 0.1, "losses": {"class": float(s % 2)}} for s in range(1, 101)]
    curves.draw_training_curves(records, tmp_path / "curves.png")
    (line,) = drawn["figure"].axes[0].lines
    np.testing.assert_allclose(np.asarray(line.get_ydata()), 0.5)  # a window of two steps has a mean of 0.5
    np.testing.assert_array_equal(line.get_xdata(), np.arange(2, 101))


def test_many_metrics_have_lines_of_their_own_and_a_legend_beside_them(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    training = {"kind": "train", "step": 1, "lr": 0.1, "losses": {"class": 1.0}}
    for number in (7, 12, 26):  # the colors; COCO's metrics; LVIS's with fixed and exhaustive AP
        metrics = {f"AP{row}": row / 100 for row in range(number)}
        records = [training, {"kind": "evaluation", "step": 1, "metrics": metrics}]
        curves.draw_training_curves(records, tmp_path / "curves.png")
        panel = drawn[-1].axes[2]
        assert len({(line.get_color(), line.get_linestyle()) for line in panel.lines}) == number
        drawn[-1].draw_without_rendering()
        beside = panel.get_legend().get_window_extent().x0 >= panel.get_window_extent().x1
        assert beside == (number > 7)


def gates_of(step: int) -> dict[str, float]:
    return {"added/P3": step / 10, "added/head": step / 5, "gate/P3": 1.0, "gate/head": 0.9, "filter/head": 0.1}


def test_gates_are_logged_and_cut_on_resume(tmp_path):
    with RunLog(tmp_path, total_steps=6) as first:
        for step in range(1, 6):
            train(first, range(step, step + 1))
            first.gates(step, gates_of(step))
    with RunLog(tmp_path, total_steps=6, resumed_step=3) as second:
        second.gates(4, {"added/P3": math.nan})
    records = [record for record in read(tmp_path) if record["kind"] == "gates"]
    assert [(record["step"], record["gates"]) for record in records] == [
        (1, gates_of(1)),
        (2, gates_of(2)),
        (3, gates_of(3)),
        (4, {"added/P3": None}),
    ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("gates/added/P3")]
    assert logged[:3] == [(step, pytest.approx(step / 10)) for step in (1, 2, 3)]
    assert math.isnan(logged[3][1])
    assert len(logged) == 4


def test_evaluations_and_gates_have_a_panel_only_where_there_are_records(tmp_path, monkeypatch):
    drawn: list[curves.Figure] = []

    def savefig(figure: curves.Figure, file: object, **_: object) -> None:
        drawn.append(figure)

    monkeypatch.setattr(curves.Figure, "savefig", savefig)
    training: dict = {"kind": "train", "step": 1, "lr": 0.1, "losses": {"class": 1.0}}
    of_gates: list[dict] = [{"kind": "gates", "step": step, "gates": gates_of(step)} for step in (50, 100)]
    nothing: dict = {"kind": "gates", "step": 50, "gates": {"added/P3": None}}
    evaluation: dict = {"kind": "evaluation", "step": 1, "metrics": {"AP": 0.5}}
    for records in ([training], [training, *of_gates], [training, nothing], [training, evaluation, *of_gates]):
        curves.draw_training_curves(records, tmp_path / "curves.png")
    panels = [[axes.get_ylabel() for axes in figure.axes] for figure in drawn]
    first = ["loss", "learning rate"]
    gates, evaluated = "gated shortcuts", "evaluation metrics"
    assert panels == [first, [*first, gates], [*first, gates], [*first, evaluated, gates]]
    lines = {line.get_label(): line for line in drawn[1].axes[2].lines}
    added, gate, filtered = "learned / shortcut", "mean |gate|", "mean |filter weight|"
    assert list(lines) == [f"{added}, P3", f"{added}, head", f"{gate}, P3", f"{gate}, head", f"{filtered}, head"]
    head = [lines[f"{quantity}, head"] for quantity in (added, gate, filtered)]
    np.testing.assert_allclose(np.asarray(head[0].get_ydata()), [10, 20])
    assert len({line.get_color() for line in head}) == 1
    assert head[0].get_color() != lines[f"{added}, P3"].get_color()
    assert len({line.get_linestyle() for line in head}) == 3
    assert head[0].get_linestyle() == lines[f"{added}, P3"].get_linestyle()


def test_durations_carry_when_rounded():
    assert [format_duration(s) for s in (0, 59.6, 3599.5, 360000)] == ["0:00:00", "0:01:00", "1:00:00", "100:00:00"]


def test_progress_leaves_how_processes_are_started_to_the_program():
    code = (
        "import multiprocessing as m\nfrom ovd.progress import progress\nlist(progress([1], 1, ''))\n"
        "m.set_start_method('spawn')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress_passes_everything_on_and_is_silent_for_short_work(capsys):
    start = time.monotonic()
    assert list(progress(range(5), 5, "reading")) == [0, 1, 2, 3, 4]
    assert list(progress([], 0, "reading")) == []
    assert time.monotonic() - start < 3
    assert capsys.readouterr().err == ""
