"""Measure startup: imports against torch's, and reading a large annotation file against pycocotools and Python's json.

    python bench/startup.py                      # 100,000 images with 1.2 million boxes, about a minute to write
    python bench/startup.py --images 10000

Each form is a process of its own; they take turns, three times. Ours checks the file, cleans its boxes and groups them
by image; `ovd, first time` has no cache of an earlier run, `ovd` has the cache that the first run made. The `lvis`
package holds the same data as pycocotools.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from annotations import write_annotations
from measured import milliseconds, save

from ovd.precision import describe_machine

ROUNDS = 3
BOXES_PER_IMAGE = 12
MASK_NUMBERS = 40

OURS = """
from ovd.data.annotations import load_annotations
from ovd.data.report import DataReport
index = load_annotations(Path(sys.argv[1]), Path("images"), format="lvis", report=DataReport())
count = len(index.boxes.values)
"""
FORMS = {
    "torch": "import torch",
    "ovd.predictor": "import ovd.predictor",
    "ovd, first time": OURS,
    "ovd": OURS,
    "pycocotools": """
import contextlib, io
from pycocotools.coco import COCO
with contextlib.redirect_stdout(io.StringIO()):
    count = len(COCO(sys.argv[1]).anns)
""",
    "json": """
import json
count = len(json.loads(Path(sys.argv[1]).read_text())["annotations"])
""",
}
PEERS = ("pycocotools", "json")
FRAME = """
import sys, time
from pathlib import Path
start, count = time.perf_counter(), 0
{work}
took = time.perf_counter() - start
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(took, int(peak) / 2**20, count)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="default: %(default)s")
    num_images = parser.parse_args().images
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    gib: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path, cache = Path(folder) / "annotations.json", Path(folder) / "cache"
        write_annotations(path, num_images, BOXES_PER_IMAGE, MASK_NUMBERS)
        for _ in range(ROUNDS):
            for name, work in FORMS.items():
                if name == "ovd, first time":
                    shutil.rmtree(cache, ignore_errors=True)
                command = [sys.executable, "-c", FRAME.format(work=work), str(path)]
                environment = {**os.environ, "OVD_CACHE": str(cache)}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                took, peak, count = map(float, done.stdout.split())
                if count not in (0, num_images * BOXES_PER_IMAGE):
                    raise SystemExit(f"no ratio: {name} has {count} boxes")
                seconds[name].append(took)
                gib[name] = round(peak, 2)
        size = path.stat().st_size
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "machine": describe_machine(torch.device("cpu")),
        "images": num_images,
        "file_MB": round(size / 1e6),
        "milliseconds": milliseconds(seconds),
        "peak_GiB": gib,
        "ratio": {
            **{f"time of {name}": round(medians["ovd"] / medians[name], 3) for name in PEERS},
            **{f"time of {name}, first time": round(medians["ovd, first time"] / medians[name], 3) for name in PEERS},
            **{f"memory of {name}": round(gib["ovd, first time"] / gib[name], 3) for name in PEERS},
            "time of imports, of torch's": round(medians["ovd.predictor"] / medians["torch"], 3),
        },
    }
    print(json.dumps(result, indent=2))
    save("startup", result, torch.device("cpu"))


if __name__ == "__main__":
    main()
