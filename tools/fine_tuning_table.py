"""Fine-tune on a foreign domain in several ways, with several seeds, and write the table and the picture.

    python tools/fine_tuning_table.py configs/fine_tuning.yaml
    python tools/fine_tuning_table.py configs/fine_tuning.yaml --seeds 11 --rows keeping plain   # only these
    python tools/fine_tuning_table.py configs/fine_tuning.yaml --report                          # no run

It can be stopped at any time: a finished run is a line of the records file and is not repeated. With --results
docs/results.md the table is written between two marker lines of that file, named after the records file.
"""

import argparse
from pathlib import Path

from ovd.ablation.fine_tuning import append_records, draw_trade, format_table, read_table, run_fine_tuning
from ovd.ablation.row import read_row
from ovd.ablation.tables import write_between_markers
from ovd.cli import run_tool
from ovd.config import AblationConfig, FineTuningTable, load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="the table, see configs/fine_tuning.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the table, for example domain=strokes")
    parser.add_argument("--rows", nargs="+", help="only these rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="run these (default: the table's)")
    parser.add_argument("--report", action="store_true", help="run nothing, only write table and picture")
    parser.add_argument("--results", type=Path, help="Markdown file to write the table into (default: only print)")
    arguments = parser.parse_intermixed_args()
    table = load_config(arguments.table, arguments.overrides, FineTuningTable)
    folder = arguments.table.parent
    unknown = sorted(set(arguments.rows or ()) - table.rows.keys())
    if unknown:
        raise ValueError(f"{arguments.table} has no rows {unknown}; it has {', '.join(table.rows)}")
    if not arguments.report:
        starts = load_config(folder / table.start, [], AblationConfig)
        start = read_row(starts.rows[table.start_row], (folder / table.start).parent, [])
        for seed in arguments.seeds or table.seeds:
            for name in arguments.rows or table.rows:
                done = {(record.row, record.seed, record.domain) for record in read_table(table.records)}
                if (name, seed, table.domain) not in done:
                    print(f"{name}, seed {seed}", flush=True)
                    found = run_fine_tuning(name, table.rows[name], seed, table, folder, start)
                    append_records(table.records, found)
    records = [record for record in read_table(table.records) if record.domain == table.domain]
    rows = list(table.rows)
    text = format_table(records, rows)
    print(text)
    draw_trade(records, rows, table.picture)
    if arguments.results is not None:
        write_between_markers(arguments.results, table.records.stem, text)


if __name__ == "__main__":
    run_tool(main)
