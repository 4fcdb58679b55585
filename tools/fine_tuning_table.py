"""Fine-tune on a foreign domain in several ways, with several seeds, and write the table and the picture.

    python tools/fine_tuning_table.py configs/fine_tuning.yaml
    python tools/fine_tuning_table.py configs/fine_tuning.yaml --seeds 11 --rows keeping plain   # only these
    python tools/fine_tuning_table.py configs/fine_tuning.yaml --report                          # no run

It can be stopped at any time: a finished run is a line of the records file and is not repeated. With --results
docs/results.md the table is written between two marker lines of that file, named after the records file.
"""

import argparse
from pathlib import Path

from ovd.ablation.fine_tuning import (
    FineTuningRecord,
    append_new_records,
    draw_tradeoff,
    format_table,
    row_hashes,
    run_fine_tuning,
)
from ovd.ablation.record_file import read_records
from ovd.ablation.records import missing_runs
from ovd.ablation.row import read_row
from ovd.ablation.tables import write_between_markers
from ovd.cli import add_overrides, parse_with_overrides, run_tool
from ovd.config.tables import AblationConfig, FineTuningTable
from ovd.config_files import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="YAML file of the table, see configs/fine_tuning.yaml")
    add_overrides(parser, help="settings of the table, for example domain=strokes")
    parser.add_argument("--rows", nargs="+", help="run only these rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to run (default: those of the table)")
    parser.add_argument("--report", action="store_true", help="only write table and picture, without runs")
    parser.add_argument("--results", type=Path, help="Markdown file to write the table into (default: only print)")
    arguments = parse_with_overrides(parser)
    table = load_config(arguments.table, arguments.overrides, FineTuningTable)
    folder = arguments.table.parent
    unknown = sorted(set(arguments.rows or ()) - table.rows.keys())
    if unknown:
        raise ValueError(f"{arguments.table} has no rows {unknown}; it has {', '.join(table.rows)}")
    starts = load_config(folder / table.start, [], AblationConfig)
    start = read_row(starts.rows[table.start_row], (folder / table.start).parent, [])
    hashes = row_hashes(table, folder, start)
    if not arguments.report:
        records = read_records(table.records, FineTuningRecord)
        missing = missing_runs(arguments.rows or list(table.rows), arguments.seeds or table.seeds, records, hashes)
        for number, (name, seed) in enumerate(missing, start=1):
            print(f"run {number} of {len(missing)}: {name}, seed {seed}", flush=True)
            append_new_records(table.records, run_fine_tuning(name, seed, table, folder, start, hashes))
    records = [
        record
        for record in read_records(table.records, FineTuningRecord)
        if record.config_hash == hashes.get(record.row) and record.seed in table.seeds
    ]
    rows = list(table.rows)
    text = format_table(records, rows)
    print(text)
    draw_tradeoff(records, {name: row.title or name for name, row in table.rows.items()}, table.picture)
    if arguments.results is not None:
        write_between_markers(arguments.results, table.records.stem, text)


if __name__ == "__main__":
    run_tool(main)
