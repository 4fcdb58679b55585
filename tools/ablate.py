"""Run a table of configs x seeds on the embedded world, one run at a time, and write its tables and picture.

    python tools/ablate.py configs/ablation.yaml
    python tools/ablate.py configs/ablation.yaml --seeds 6 7 --rows scratch gated     # only these
    python tools/ablate.py configs/ablation.yaml --report                             # no run, only tables and picture

It can be stopped at any time: a run in progress continues from its last checkpoint, a finished one is a line of the
records file and is not repeated. With --results docs/results.md the tables are written between two marker lines of
that file, named after the records file. Overrides of the form key=value apply to the configs of training and teacher of
every row, for trials: train.steps=20 train.warmup_steps=5. Records and picture of a trial go to the folder of its runs.
"""

import argparse
import time
from pathlib import Path

from ovd.ablation.plots import draw_lengths, draw_rows
from ovd.ablation.record_file import append_record, read_records
from ovd.ablation.records import Record, missing_runs, select
from ovd.ablation.row import RowStages, read_row, run_row, with_steps
from ovd.ablation.tables import format_lengths, format_report, write_between_markers
from ovd.cli import add_overrides, parse_with_overrides, run_tool
from ovd.config.tables import AblationConfig
from ovd.config_files import load_config
from ovd.format_count import format_count


def report(config: AblationConfig, variants: list[dict[str, RowStages]], results: Path | None) -> None:
    """Draw the picture, print the tables, and write them into `results`, if given."""
    configs = {(row, stages.hash()) for variant in variants for row, stages in variant.items()}
    selection = select(read_records(config.records, Record), configs, config.seeds)
    rows = list(config.rows)
    if not selection.records:
        print("there are no finished runs yet, so no tables and no picture")
        return
    config.picture.parent.mkdir(parents=True, exist_ok=True)
    draw, tables = (draw_lengths, format_lengths) if config.lengths else (draw_rows, format_report)
    draw(selection.records, {name: row.title or name for name, row in config.rows.items()}, config.picture)
    text = tables(selection, rows)
    print(text)
    if results is not None:
        write_between_markers(results, config.records.stem, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file of the table, see configs/ablation.yaml")
    add_overrides(parser, help="settings for the configs of all rows, for example train.steps=20")
    parser.add_argument("--rows", nargs="+", help="run only these rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to run (default: those of the table); "
                        "tables and picture always have the table's")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="only write tables and picture, without runs")
    parser.add_argument("--results", type=Path, help="Markdown file to write the tables into (default: only print)")
    arguments = parse_with_overrides(parser)
    config = load_config(arguments.config, [], AblationConfig)
    unknown = sorted(set(arguments.rows or ()) - config.rows.keys())
    if unknown:
        raise ValueError(f"{arguments.config} has no rows {unknown}; it has {', '.join(config.rows)}")
    if arguments.overrides:
        if arguments.results is not None:
            raise ValueError(
                "--results cannot be used with key=value, since trials do not belong in a table of results"
            )
        trial = {"records": config.runs / "trial.jsonl", "picture": config.runs / "trial.png"}
        config = config.model_copy(update=trial)
    folder = arguments.config.parent
    stages = {name: read_row(row, folder, arguments.overrides) for name, row in config.rows.items()}
    variants = [{name: with_steps(of, steps) for name, of in stages.items()} for steps in config.lengths] or [stages]
    if not arguments.report:
        rows, seeds = arguments.rows or list(config.rows), arguments.seeds or config.seeds
        records = read_records(config.records, Record)
        missing = [
            (row, seed, variant[row])
            for variant in variants
            for row, seed in missing_runs(rows, seeds, records, {name: of.hash() for name, of in variant.items()})
        ]
        start, steps_done, steps = time.monotonic(), 0, sum(of_row.steps for _, _, of_row in missing)
        for number, (row, seed, of_row) in enumerate(missing, start=1):
            print(
                f"run {number} of {len(missing)}: {row}, seed {seed}, {format_count(of_row.steps, 'step')}", flush=True
            )
            append_record(config.records, run_row(row, of_row, seed, config.runs))
            steps_done += of_row.steps
            left = (time.monotonic() - start) / steps_done * (steps - steps_done) / 60
            print(f"{row}, seed {seed} done; about {left:.0f} minutes left", flush=True)
    report(config, variants, arguments.results)


if __name__ == "__main__":
    run_tool(main)
