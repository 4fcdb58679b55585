"""The table of ways to fine-tune: rows, resumption, table and picture."""

import math
from pathlib import Path

import pytest

from ovd.ablation.fine_tuning import FineTuningRecord, append_new_records, draw_tradeoff, format_table, row_hashes
from ovd.ablation.record_file import read_records
from ovd.ablation.row import read_row
from ovd.config.tables import AblationConfig, FineTuningTable
from ovd.config_files import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
RECORD = FineTuningRecord(
    row="keeping", seed=1, domain="shapes", new_AP=30.0, new_AP50=50.0, kept_AP=70.0, kept_APr=60.0, kept_cgF1=65.0,
    minutes=1.5, megabytes=6.3, steps=300, config_hash="a", device="CPU", date="2026-01-01",
)  # fmt: skip


def record(row: str, seed: int, **values: float) -> FineTuningRecord:
    return FineTuningRecord(**{**vars(RECORD), "row": row, "seed": seed, **values})


@pytest.fixture
def records() -> list[FineTuningRecord]:
    return [record(row, seed, new_AP=30.0 + seed) for row in ("before", "keeping") for seed in (1, 2, 3)]


def test_records_are_kept_once(tmp_path: Path, records) -> None:
    path = tmp_path / "results" / "table.jsonl"
    append_new_records(path, records[:2])
    append_new_records(path, [record("before", 1, new_AP=0.0), *records[2:]])  # every row measures `before` again
    assert read_records(path, FineTuningRecord) == records
    with pytest.raises(ValueError, match="new_AP"):
        record("keeping", 4, new_AP=math.nan)


def test_a_rows_hash_holds_all_that_its_metrics_depend_on() -> None:
    """A row's hash covers its settings, the domain and the start, but no paths, so that a table holds no records of
    other settings."""

    def hashes(*overrides: str) -> dict[str, str]:
        table = load_config(CONFIGS / "fine_tuning.yaml", list(overrides), FineTuningTable)
        starts = load_config(CONFIGS / table.start, [], AblationConfig)
        return row_hashes(table, CONFIGS, read_row(starts.rows[table.start_row], CONFIGS, []))

    now = hashes()
    assert len(set(now.values())) == len(now) == 14
    assert hashes("runs=elsewhere", "data=there") == now
    changed = hashes("rows.keeping.overrides=[expert.own_layers=2]", "rows.averaged.weight=0.6")
    assert {row for row in now if changed[row] != now[row]} == {"keeping", "averaged"}
    for other in (hashes("domain=strokes"), hashes("start_row=today")):
        assert not set(other.values()) & set(now.values())


def test_the_table_has_means_and_intervals_over_the_seeds(records) -> None:
    lines = format_table(records, ["keeping", "missing"]).splitlines()
    assert lines[0].startswith("| row | seeds | new AP | kept AP |")
    assert len(lines) == 4
    # The mean is 32, the standard deviation 1, Student's t of two degrees of freedom 4.303: 4.303 / sqrt(3) = 2.48.
    assert lines[3].startswith("| keeping | 3 | 32.0 (29.5 to 34.5) | 70.0 (70.0 to 70.0) |")
    assert format_table(records[:1], []).splitlines()[2].startswith("| before | 1 | 31.0 | 70.0 |")


def test_a_cgf1_of_minus_one_is_a_value_and_an_ap_of_minus_one_is_none() -> None:
    last = format_table([record("keeping", 1, kept_APr=-1.0, kept_cgF1=-1.0)], ["keeping"]).splitlines()[-1]
    assert last.startswith("| keeping | 1 | 30.0 | 70.0 | - | -1.0 |")


@pytest.mark.pictures
def test_the_picture_has_a_panel_of_what_is_gained_and_one_of_what_is_kept(
    tmp_path: Path, records, monkeypatch
) -> None:
    drawn = []
    monkeypatch.setattr("ovd.ablation.fine_tuning.draw_panels", lambda *given, joined: drawn.append(given))
    unknown = record("keeping", 4, new_AP=-1.0)
    draw_tradeoff([*records, unknown], {"keeping": "expert", "missing": "nothing"}, tmp_path / "pictures" / "trade.png")
    ((gained, kept), titles, _) = drawn[0]
    assert titles == {"before": "before fine-tuning", "keeping": "expert", "missing": "nothing"}
    assert gained.values == {"before": {1: 31, 2: 32, 3: 33}, "keeping": {1: 31, 2: 32, 3: 33}, "missing": {}}
    assert kept.values["keeping"] == {1: 70, 2: 70, 3: 70}


@pytest.mark.pictures
def test_the_picture_is_drawn(tmp_path: Path, records) -> None:
    draw_tradeoff(records, {"keeping": "expert", "missing": "nothing"}, tmp_path / "pictures" / "trade.png")
    assert (tmp_path / "pictures" / "trade.png").stat().st_size > 10_000


def test_what_a_row_is_called_does_not_change_its_hash() -> None:
    table = load_config(CONFIGS / "fine_tuning.yaml", [], FineTuningTable)
    starts = load_config(CONFIGS / table.start, [], AblationConfig)
    start = read_row(starts.rows[table.start_row], CONFIGS, [])
    renamed = load_config(CONFIGS / "fine_tuning.yaml", ["rows.plain.title=anything"], FineTuningTable)
    assert row_hashes(renamed, CONFIGS, start) == row_hashes(table, CONFIGS, start)
