"""Compare the time of the quick start with that of its training steps, and with 12 minutes, or a minute on a GPU.

    make quickstart && python bench/quickstart.py

The files of a finished quick start are read; nothing is run. With `make` the installation is a stage, which does not
count on a GPU. The time of the training steps is that from the first logged step to the last, of both trainings.
"""

import argparse
import json
from pathlib import Path

import torch
from measured import save

from ovd.engine.log import format_duration
from ovd.engine.metric_records import METRICS_FILE, read_records

RUNS = Path("runs")
SECONDS = {"cpu": 12 * 60, "cuda": 60}


def seconds_of_steps(run: Path) -> float:
    """Return the seconds from the first logged step of a training to the last."""
    times = [record["time_s"] for record in read_records(run / METRICS_FILE) if record["kind"] == "train"]
    return times[-1] - times[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of both runs (default: %(default)s)")
    runs = parser.parse_args().runs
    path = runs / "quickstart" / "stages.json"
    if not path.exists():
        raise SystemExit(f"{path} is not there: run `make quickstart` first, without --resume")
    stages = json.loads(path.read_text())
    seconds, device = stages["seconds"], stages["device"]
    counted = {name: value for name, value in seconds.items() if device == "cpu" or name != "installing"}
    total = sum(counted.values())
    steps = sum(seconds_of_steps(runs / name) for name in ("quickstart_base", "quickstart"))
    limit = SECONDS[device]
    result = {
        "machine": stages["machine"],
        "ratio": {
            f"time of {format_duration(limit)}": round(total / limit, 3),
            "time of its training steps": round(total / steps, 3),
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seconds_of_steps": round(steps, 1),
    }
    print(result)
    save("quickstart", result, torch.device(device))


if __name__ == "__main__":
    main()
