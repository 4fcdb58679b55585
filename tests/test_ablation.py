"""The ablation: records survive kills and parallel writers, statistics equal scipy's, tables and pictures show them."""

import dataclasses
import json
import math
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ovd.ablation.plots import draw_lengths, draw_rows
from ovd.ablation.record_file import append_record, read_records
from ovd.ablation.records import Record, missing_runs, select
from ovd.ablation.statistics import estimate, paired_difference, row_estimate
from ovd.ablation.tables import format_lengths, format_report, write_between_markers
from ovd.format_count import format_count

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
HASHES = {"scratch": "a", "gated": "b", "self_training": "c"}


def record(row: str = "gated", seed: int = 5, **changed: Any) -> Record:
    values: dict[str, Any] = {
        "row": row,
        "seed": seed,
        **dict.fromkeys(("AP", "APr", "APc", "APf", "coco_AP", "o365_AP"), 0.5),
        "hours": 0.25,
        "config_hash": HASHES[row],
        "steps": 450,
        "device": "CPU",
        "instruction_set": "AVX512",
        "versions": {"torch": "2.14.1"},
        "date": "2026-11-24",
    }
    return Record(**(values | changed))


# --- records ---


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "ablation.jsonl"
    assert read_records(path, Record) == []
    written = [record(seed=5, APr=1 / 3, extra={"naming_all": -2.5}), record("scratch", 6, APc=-1.0, cgF1_rare=-3.0)]
    for one in written:
        append_record(path, one)
    assert read_records(path, Record) == written
    assert [json.loads(line) for line in path.read_text().splitlines()] == list(map(dataclasses.asdict, written))


@pytest.mark.parametrize("changed", [{"AP": math.nan}, {"APr": 67.9}, {"seed": True}, {"extra": {"x": math.inf}}])
def test_a_value_that_cannot_be_is_refused_when_the_record_is_made(changed: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(changed))):
        record(**changed)


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_is_dropped_and_the_next_record_replaces_it(tmp_path, capsys, kept: int):
    path = tmp_path / "ablation.jsonl"
    append_record(path, record(seed=5))
    whole = path.read_bytes()
    append_record(path, record(seed=6))
    second = path.read_bytes()[len(whole) : -1]
    path.write_bytes(whole + second[:kept])

    assert [one.seed for one in read_records(path, Record)] == [5]
    assert (
        f"line 2: left out, since it is incomplete ({format_count(len(second[:kept]), 'byte')})"
        in capsys.readouterr().err
    )
    append_record(path, record(seed=7))
    assert "incomplete" in capsys.readouterr().err
    assert [one.seed for one in read_records(path, Record)] == [5, 7]
    assert capsys.readouterr().err == ""


def test_a_whole_last_line_without_its_line_end_counts(tmp_path, capsys):
    path = tmp_path / "ablation.jsonl"
    append_record(path, record(seed=5))
    path.write_bytes(path.read_bytes()[:-1])
    assert [one.seed for one in read_records(path, Record)] == [5]
    append_record(path, record(seed=6))
    assert [one.seed for one in read_records(path, Record)] == [5, 6]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda line: line[:30], "JSON"),
        (lambda line: "", "JSON"),
        (lambda line: line.replace('"seed":6', '"seed":"6"'), "seed"),
        (lambda line: line.replace('"seed":6', '"seed":6,"speed":1'), "speed"),
        (lambda line: line.replace('"seed":6,', ""), "seed"),
        (lambda line: "[]", "object"),
    ],
)
def test_damage_before_the_last_line_names_file_line_and_field(tmp_path, damage, named: str):
    path = tmp_path / "ablation.jsonl"
    for seed in (5, 6, 7):
        append_record(path, record(seed=seed))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage(lines[1]), lines[2]]) + "\n")
    with pytest.raises(ValueError, match=rf"ablation\.jsonl, line 2: .*{named}"):
        read_records(path, Record)


def test_two_processes_append_whole_lines(tmp_path):
    path = tmp_path / "ablation.jsonl"
    script = """
import sys
from pathlib import Path
from ovd.ablation.record_file import append_record
from ovd.ablation.records import Record
figures = {f"figure {i}": i / 7 for i in range(250)}  # lines longer than a page
metrics = dict.fromkeys(("AP", "APr", "APc", "APf", "coco_AP", "o365_AP"), 0.5)
for seed in range(200):
    append_record(Path(sys.argv[1]), Record(row=sys.argv[2], seed=seed, **metrics, hours=1.0, config_hash="a", steps=1,
                  device="CPU", instruction_set="AVX2", versions={}, date="", extra=figures))
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), row]) for row in ("scratch", "gated")]
    assert [writer.wait() for writer in writers] == [0, 0]
    records = read_records(path, Record)
    for row in ("scratch", "gated"):
        assert [one.seed for one in records if one.row == row] == list(range(200))
    assert len(records) == 400
    assert {one.extra["figure 249"] for one in records} == {249 / 7}


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "ablation.jsonl"
    append_record(path, record(seed=5))
    before = path.read_bytes()
    with largest_file(len(before) + 10), pytest.raises(OSError, match=r"ablation\.jsonl: only 10 of"):
        append_record(path, record(seed=6))
    assert path.read_bytes() == before


def test_missing_runs_finish_whole_seeds_first():
    rows = list(HASHES)
    records = [record("gated", 5), record("scratch", 6), record("self_training", 5, config_hash="an older one")]
    assert missing_runs(rows, [5, 6], records, HASHES) == [
        ("scratch", 5),
        ("self_training", 5),
        ("gated", 6),
        ("self_training", 6),
    ]
    assert missing_runs(rows, [5], [record(row, 5) for row in rows], HASHES) == []
    assert missing_runs(["gated"], [2, 1], [], HASHES) == [("gated", 2), ("gated", 1)]
    assert missing_runs([], [5], records, HASHES) == []
    assert missing_runs(["gated"], [2, 2], [], HASHES) == [("gated", 2)]


def test_one_table_is_of_one_machine_where_it_can_be_and_of_present_configs():
    here = [record(row, 5) for row in HASHES]
    records = [
        record("gated", 5, device="GPU"),
        record("gated", 6, device="GPU"),
        record("scratch", 5, AP=0.1),  # repeated below
        *here,
        record("scratch", 6, config_hash="an older one"),
        record("gated", 6, instruction_set="AVX2"),
        record("gated", 7, versions={"torch": "2.15.0"}),
    ]
    selection = select(records, HASHES.items(), range(100))
    on_gpu, newer = record("gated", 6, device="GPU"), record("gated", 7, versions={"torch": "2.15.0"})
    assert sorted(selection.records, key=str) == sorted([*here, on_gpu, newer], key=str)
    assert selection.notes == (
        "records of other configs: 1 scratch",
        "records of runs that were done again later: 1",
        "records of another machine (GPU, AVX512, torch 2.14.1): 1 gated",
        "records of another machine (CPU, AVX2, torch 2.14.1): 1 gated",
    )
    assert selection.other_machines == (
        "on another machine (GPU, AVX512, torch 2.14.1): 1 gated",
        "on another machine (CPU, AVX512, torch 2.15.0): 1 gated",
    )
    assert select(here, HASHES.items(), range(100)).notes == ()
    assert select([], HASHES.items(), range(100)).records == ()


# --- statistics ---


@pytest.mark.parametrize("num_values", [2, 3, 5, 31])
def test_estimates_equal_scipys(num_values: int):
    values = np.random.default_rng(num_values).normal(0.5, 0.1, num_values)
    found = estimate(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean, found.deviation) == pytest.approx((np.mean(values), stats.tstd(values)))
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.num_values == num_values


def test_an_interval_by_hand():
    # Values 1, 2, 3: mean 2, deviation 1. t of 2 degrees of freedom at 0.975 is 4.3027 in every printed table.
    found = estimate(np.array([1.0, 2.0, 3.0]))
    assert found.interval == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)


def test_differences_are_paired_over_common_seeds():
    rng = np.random.default_rng(0)
    values = {(row, seed): float(rng.random()) for row in ("gated", "scratch") for seed in range(6)}
    # Records are in another order, and each row lacks a seed of the other.
    records = [record(row, seed, APr=value) for (row, seed), value in reversed(values.items())]
    records = [one for one in records if (one.row, one.seed) not in {("gated", 1), ("scratch", 4)}]
    found = paired_difference(records, "gated", "scratch", "APr")
    assert found is not None
    assert found.num_values == 4
    common = (0, 2, 3, 5)
    expected = stats.ttest_rel([values["gated", seed] for seed in common], [values["scratch", seed] for seed in common])
    interval = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high))
    back = paired_difference(records, "scratch", "gated", "APr")
    assert back is not None
    assert back.mean == pytest.approx(-found.mean)


def test_one_seed_has_no_interval_and_no_seed_no_estimate():
    records = [record("gated", 5, AP=0.7), record("scratch", 5, AP=0.4), record("self_training", 6)]
    found = paired_difference(records, "gated", "scratch", "AP")
    assert found is not None
    assert (found.mean, found.deviation, found.interval, found.num_values) == (pytest.approx(0.3), None, None, 1)
    assert paired_difference(records, "gated", "self_training", "AP") is None
    assert paired_difference([], "gated", "scratch", "AP") is None
    assert row_estimate([], "gated", "AP") is None


def test_an_unknown_metric_is_not_averaged():
    records = [record("gated", 5, APr=-1.0), record("gated", 6, APr=0.6), record("scratch", 5), record("scratch", 6)]
    assert row_estimate(records, "gated", "APr") is None
    assert paired_difference(records, "scratch", "gated", "APr") is None
    assert paired_difference(records, "scratch", "gated", "AP") is not None


def test_of_a_score_of_decisions_minus_one_is_a_value():
    records = [record(seed=5, cgF1=-1.0, IL_MCC=-1.0), record(seed=6, cgF1=3.0, IL_MCC=0.0)]
    for metric, mean in (("cgF1", 1.0), ("IL_MCC", -0.5)):
        found = row_estimate(records, "gated", metric)
        assert found is not None
        assert (found.mean, found.num_values) == (mean, 2)
    assert row_estimate([*records, record(seed=7)], "gated", "cgF1") is None


# --- tables ---


def table_lines(report: str) -> dict[str, list[str]]:
    """Return the cells of every table line, by the first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:1] == "|"]
    return {first: cells for first, *cells in rows}


def test_tables_hold_means_differences_and_what_is_missing():
    records = [
        record("scratch", 5, APr=0.60, hours=0.2),
        record("scratch", 6, APr=0.64, hours=0.4),
        record("gated", 5, APr=0.65),
        record("gated", 6, APr=0.67, o365_AP=-1.0),
        record("self_training", 5, APr=0.60),
        record("self_training", 6, config_hash="an older one"),
    ]
    report = format_report(select(records, HASHES.items(), range(100)), ["scratch", "gated", "self_training", "oracle"])
    assert report.startswith("5 runs, seeds 5, 6, on CPU, AVX512, torch 2.14.1.\n")
    assert report.endswith("\n\nLeft out: records of other configs: 1 self_training.\n")
    lines = table_lines(report)
    same = "50.00 ± 0.00"
    assert lines["row"] == ["seeds", "AP", "APr", "APc", "APf", "COCO AP", "O365 AP", "hours"]
    assert lines["scratch"] == ["2", same, "62.00 ± 2.83", same, same, same, same, "0.30"]
    assert lines["gated"] == ["2", same, "66.00 ± 1.41", same, same, same, "-", "0.25"]
    assert lines["self_training"][:3] == ["1", "50.00", "60.00"]
    assert lines["oracle"] == ["0", *["-"] * 7]
    # Differences 5 and 3: mean 4, deviation 1.414. t of 1 degree of freedom is 12.706.
    assert lines["gated - scratch"] == [
        "2",
        "+4.00 (-8.71 to 16.71)",
        "+0.00 (0.00 to 0.00)",
        "+0.00 (0.00 to 0.00)",
        "-",
    ]
    assert lines["self_training - gated"][:2] == ["1", "-5.00 (-)"]
    assert lines["self_training - oracle"] == ["0", "-", "-", "-", "-"]
    assert "gated - text_augmentation" not in lines  # text_augmentation is not a row of this table


def test_a_report_of_no_record_and_of_one():
    empty = format_report(select([], HASHES.items(), range(100)), list(HASHES))
    assert empty.startswith("No finished run yet.\n")
    assert table_lines(empty)["gated"] == ["0", *["-"] * 7]
    one = format_report(select([record()], HASHES.items(), range(100)), list(HASHES))
    assert table_lines(one)["gated"] == ["1", *["50.00"] * 6, "0.25"]
    only = format_report(select([record()], HASHES.items(), range(100)), ["gated"])
    assert set(table_lines(only)) == {"row", "---", "gated"}  # there is no row to compare with


def test_lengths_are_set_side_by_side_and_compared_at_each():
    records = [
        record(row, seed, steps=steps, config_hash=str(steps), APr=APr, extra={"naming_rare": 0.1})
        for row, steps, values in (
            ("scratch", 1600, (0.60, 0.64)),
            ("gated", 1600, (0.65, 0.67)),
            ("gated", 50, (0.2,)),
        )
        for seed, APr in enumerate(values)
    ]
    configs = [(row, steps) for row in HASHES for steps in ("50", "1600")]
    report = format_lengths(select(records, configs, range(100)), ["scratch", "gated"])
    assert report.startswith("5 runs, seeds 0, 1, on CPU, AVX512, torch 2.14.1.\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:1] == "|"]
    assert [line[:4] for line in lines[2:6]] == [
        ["scratch", "50", "0", "-"],
        ["scratch", "1,600", "2", "62.00 ± 2.83"],
        ["gated", "50", "1", "20.00"],
        ["gated", "1,600", "2", "66.00 ± 1.41"],
    ]
    assert lines[0][-2:] == ["rare named right", "base named right"]
    assert lines[5][-2:] == ["10.00 ± 0.00", "-"]
    assert [line[:3] for line in lines[8:]] == [
        ["gated - scratch", "50", "-"],
        ["gated - scratch", "1,600", "+4.00 (-8.71 to 16.71)"],
    ]
    assert format_lengths(select([], HASHES.items(), range(100)), ["scratch"]).startswith("No finished run yet.")


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_only_what_stands_between_the_markers_changes(tmp_path, line_end: str):
    path = tmp_path / "results.md"
    before, after = f"# Results ±{line_end}{line_end}text  {line_end}", f"{line_end}more{line_end}{line_end}no last end"
    path.write_bytes(f"{before}{BEGIN}{line_end}old{line_end}{END}{after}".encode())
    for text in ("| new ± |\n", "newer\n"):
        write_between_markers(path, "table", text)
        assert path.read_bytes() == f"{before}{BEGIN}\n{text}{END}{after}".encode()
    assert os.listdir(tmp_path) == ["results.md"]


@pytest.mark.parametrize("markers", [[], [BEGIN], [END], [END, BEGIN], [BEGIN, END, END], [BEGIN, BEGIN, END]])
def test_a_file_without_its_markers_is_refused_and_stays(tmp_path, markers: list[str]):
    path = tmp_path / "results.md"
    path.write_text("\n".join(["text", *markers, "text"]))
    with pytest.raises(ValueError, match=rf"results\.md: needs one line {re.escape(BEGIN)}"):
        write_between_markers(path, "table", "new\n")
    assert path.read_text() == "\n".join(["text", *markers, "text"])


# --- pictures ---


def contrast(path: Path) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return int(np.ptp(np.asarray(image.convert("L"))))


@pytest.mark.pictures
@pytest.mark.parametrize("num_seeds", [0, 1, 12])
def test_pictures_are_drawn_of_none_one_and_many_seeds(tmp_path, num_seeds: int):
    rng = np.random.default_rng(0)
    records = [
        record(row, seed, APr=float(rng.random()), steps=steps, coco_AP=-1.0 if seed == 2 else 0.5)
        for row in ("scratch", "gated")
        for seed in range(num_seeds)
        for steps in (100, 1600)
    ]
    draw_lengths(records, {"scratch": "scratch", "gated": "gated"}, tmp_path / "length.png")
    of_one_length = [one for one in records if one.steps == 100]
    draw_rows(of_one_length, {"scratch": "one", "no record": "none", "gated": "two"}, tmp_path / "ablation.png")
    assert contrast(tmp_path / "length.png") > 100
    assert contrast(tmp_path / "ablation.png") > 100


@pytest.mark.pictures
def test_rows_are_drawn_where_their_values_are(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("ovd.ablation.plots.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    records = [record("scratch", 5, APr=0.2), record("gated", 5, APr=0.3), record("gated", 6, APr=0.5)]
    draw_rows(records, {"scratch": "none of the ways", "gated": "shortcuts"}, tmp_path / "ablation.png")
    panels = drawn[0].axes
    assert [axes.get_title().partition(":")[0] for axes in panels[:2]] == ["APr", "AP"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["none of the ways", "shortcuts"]
    assert panels[0].get_ylim()[0] > panels[0].get_ylim()[1]  # the first row is on top
    lines = {line.get_label(): line for line in panels[0].get_lines()}
    np.testing.assert_allclose(lines["seed 5"].get_xdata(), [20, 30])
    np.testing.assert_allclose(lines["seed 6"].get_xdata(), [np.nan, 50])
    diamonds = [line for line in panels[0].get_lines() if line.get_marker() == "D" and len(line.get_xdata())]
    np.testing.assert_allclose([line.get_xdata()[0] for line in diamonds], [20, 40])


@pytest.mark.pictures
def test_lengths_are_drawn_with_means_over_seeds(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("ovd.ablation.plots.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    values = {(5, 900): 0.6, (5, 100): 0.2, (6, 100): 0.4, (6, 900): 0.8}
    records = [
        record("gated", seed, steps=steps, APr=APr, APf=APr / 2, extra={"naming_rare": APr / 4})
        for (seed, steps), APr in values.items()
    ]
    draw_lengths(records, {"scratch": "scratch", "gated": "gated"}, tmp_path / "length.png")
    rare, naming, _, frequent = drawn[0].axes
    for axes, factor in ((rare, 100), (naming, 25), (frequent, 50)):
        lines = {line.get_label(): line for line in axes.get_lines()}
        np.testing.assert_array_equal(lines["gated"].get_xdata(), [100, 900])
        np.testing.assert_allclose(lines["gated"].get_ydata(), [0.3 * factor, 0.7 * factor])
        seeds = [line.get_ydata() for line in axes.get_lines() if line.get_marker() == "o"]
        np.testing.assert_allclose(
            sorted(map(list, seeds)), [[0.2 * factor, 0.6 * factor], [0.4 * factor, 0.8 * factor]]
        )
