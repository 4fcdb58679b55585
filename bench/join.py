"""Run the benchmarks that this machine can run, and join all results into docs/benchmarks.json, .md and .png.

    python bench/join.py                          # all rows of a CPU, or of a GPU where there is one
    python bench/join.py --rows detect optimizer  # some of them
    python bench/join.py --only-join              # run none

The rows and their marks are in bench/rows.py. A script whose outputs differ from the peer's leaves no result. Rows that
are not run keep their result in bench/results/ or docs/benchmarks.json.
"""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from measured import results_file
from rows import ROWS, Row

from ovd.precision import BF16_INSTRUCTIONS, describe_machine
from ovd.visualize.palette import PALETTE

ROOT = Path(__file__).parents[1]
JSON, TABLE, PICTURE = (ROOT / "docs" / f"benchmarks.{kind}" for kind in ("json", "md", "png"))
KINDS = {"cpu": "cpu", "cpu_amx": "cpu", "cpu_float32": "cpu", "cuda": "cuda"}
"""Devices of the page, each with its device in `ROWS`."""
DEVICE_WORDS = {
    "cpu": "CPU with AVX512-BF16 (cpu)",
    "cpu_amx": "CPU with AMX (cpu_amx)",
    "cpu_float32": "CPU without either (cpu_float32)",
    "cuda": "GPU (cuda)",
}
"""Labels of the devices in the picture."""
MIN_SHOWN = 0.2
"""Smallest ratio over its mark in the picture; a smaller one, such as 0, is drawn as an arrow there."""
HEAD = """# Benchmarks

`make bench` writes this page. It runs a script of `bench/` for each row. The docstring of the script says what it
measures, and `bench/rows.py` has the limit of each ratio (*at most*). A ratio is our time or memory over that of a peer
in the same run, so lower is better. Ratios differ between CPUs and GPUs, and between three kinds of CPU: with AVX512's
instructions for bfloat16 (`cpu`), with AMX, which multiplies bfloat16 matrices several times faster (`cpu_amx`), and
with neither (`cpu_float32`).

*Tuned* is torchvision's FCOS with bf16 and channels last if ours uses them. *Products* are the loss's two matrix
products alone. The *floor* is the time to copy the data that an optimizer's step reads and writes. *hotcoco alone* is
the metric without ovd's reading of files. "Time of 1 ms", "memory of 64 MiB" and "time of 0:12:00" are ratios to these
fixed values.

![each ratio over its mark](benchmarks.png)

| script | device | mark | ratio | at most | reached |
|---|---|---|---|---|---|
"""


def run(row: Row) -> None:
    """Run a row's script, which leaves no result if it fails."""
    results_file(row.name, row.device).unlink(missing_ok=True)
    command = row.command()
    print(f"$ python bench/{' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, f"bench/{command[0]}", *command[1:]], cwd=ROOT)
    if done.returncode:
        print(f"{row.name} on {row.device} has no result", flush=True)


def joined(row: Row, raw: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the page, from the results of its script."""
    ratio, device = raw["ratio"], device_name(row.device, raw["machine"])
    marks = {
        mark: {"limit": round(limit, 3), "reached": mark in ratio and ratio[mark] <= limit}
        for mark, limit in row.limits.items()
        if device != "cpu_float32" or "bfloat16" not in mark
    }
    reached = all(mark["reached"] for mark in marks.values())
    return {"name": row.name, "device": device, "ratio": ratio, "marks": marks, "reached": reached, "raw": raw}


def device_name(device: str, machine: str) -> str:
    """Return the name of a device on the page.

    Args:
        device: device of a row of `ROWS`.
        machine: description by `describe_machine`.
    """
    if device == "cuda":
        return device
    amx, avx512 = BF16_INSTRUCTIONS
    return "cpu_amx" if amx in machine else "cpu" if avx512 in machine else "cpu_float32"


def all_rows(ran: Collection[Row]) -> list[dict[str, Any]]:
    """Return the rows with a result, in bench/results/ or, if they did not run, on the page; one per kind of CPU."""
    raw = {(row["name"], row["device"]): row["raw"] for row in _rows_of_page()}
    for row in ROWS:
        file = results_file(row.name, row.device)
        if row in ran:
            raw.pop((row.name, device_name(row.device, describe_machine(torch.device(row.device)))), None)
        if file.exists():
            found = json.loads(file.read_text())
            raw[row.name, device_name(row.device, found["machine"])] = found
    return [
        joined(row, raw[row.name, device])
        for device, kind in KINDS.items()
        for row in ROWS
        if row.device == kind and (row.name, device) in raw
    ]


def _rows_of_page() -> list[dict[str, Any]]:
    return json.loads(JSON.read_text())["rows"] if JSON.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Return the text of the page."""
    lines = [
        f"| {row['name']} | {row['device']} | {mark} | {row['ratio'].get(mark, 'none')} | {known['limit']} | "
        f"{'yes' if known['reached'] else 'no'} |"
        for row in rows
        for mark, known in row["marks"].items()
    ]
    machines = sorted({f"- {row['device']}: {row['raw']['machine']}, {row['raw']['date']}" for row in rows})
    there = {(row["name"], row["device"]) for row in rows}
    missing = [f"- {row.name}, {row.device}" for row in ROWS if (row.name, row.device) not in there]
    parts = [HEAD + "\n".join(lines), "Machines:", "\n".join(machines)]
    if missing:
        parts += ["Without a result:", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Draw a line for each mark, with a point for each kind of machine: the ratio over the mark, which is at 1.

    A ratio that is too small for the axis is an arrow at its left end.
    """
    shares = {
        (row["device"], f"{row['name'].replace('_', ' ')}: {mark}"): row["ratio"][mark] / known["limit"]
        for row in rows
        for mark, known in row["marks"].items()
        if mark in row["ratio"]
    }
    kinds = [[device for device in KINDS if KINDS[device] == kind] for kind in dict.fromkeys(KINDS.values())]
    labels = [list(dict.fromkeys(label for device, label in shares if device in devices)) for devices in kinds]
    heights = [1 + 0.22 * len(of_kind) for of_kind in labels]
    figure = Figure(figsize=(9.5, sum(heights)), layout="constrained")
    panels = figure.subplots(len(kinds), height_ratios=heights)
    for panel, devices, of_kind in zip(panels, kinds, labels, strict=True):
        for device, marker, color in zip(devices, "o^s", PALETTE, strict=False):
            found = [(shares[device, label], place) for place, label in enumerate(of_kind) if (device, label) in shares]
            panel.plot([], [], marker, color=color, markersize=5, label=DEVICE_WORDS[device])
            for share, place in found:
                shown = marker if share >= MIN_SHOWN else "<"
                panel.plot(max(share, MIN_SHOWN), place, shown, color=color, markersize=5, alpha=0.8)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        left, right = panel.get_xlim()
        panel.axvspan(left, 1, color=PALETTE[2], alpha=0.08, linewidth=0)
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xlim(left, right)
        panel.set_yticks(range(len(of_kind)), of_kind, fontsize=8)
        panel.margins(y=0.02)
        panel.invert_yaxis()
        panel.grid(alpha=0.3)
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(devices), fontsize=8, frameon=False)
    panels[-1].set_xlabel("ratio over its mark; the mark is reached on the green side of 1")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--rows", nargs="+", choices=sorted({row.name for row in ROWS}), help="run only these")
    parser.add_argument("--only-join", action="store_true", help="run none, join what is there")
    arguments = parser.parse_args()
    ran = []
    for row in ROWS if not arguments.only_join else ():
        is_wanted = row.device == arguments.device and row.name in (arguments.rows or [row.name])
        if is_wanted and (row.needs is None or (ROOT / row.needs).exists()):
            run(row)
            ran.append(row)
    rows = all_rows(ran)
    machine = describe_machine(torch.device(arguments.device))
    content = {"machine": machine, "date": datetime.date.today().isoformat(), "rows": rows}
    JSON.write_text(json.dumps(content, indent=1) + "\n")
    TABLE.write_text(table(rows))
    picture(rows).savefig(PICTURE, dpi=90)
    print(f"{sum(row['reached'] for row in rows)} of {len(rows)} rows reach all their marks; {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
