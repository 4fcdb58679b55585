"""Measure the evaluation of a results file against hotcoco alone: as commands on files, and from arrays in memory.

    python bench/lvis_eval.py            # 2,000 images x 300 detections x 1,203 classes
    python bench/lvis_eval.py --full     # 19,809 images, as many as LVIS's validation set has

Both commands read the same two files, which are made here, and give LVIS's nine values of ordinary AP; if one differs,
no ratio is given. Ours reports the fixed AP and the decisions as well, and checks both files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import hotcoco
import numpy as np
import torch
from annotations import detections_of, write_annotations
from measured import measure_seconds, milliseconds, save, time_ratio

from ovd.data.annotations import load_truth
from ovd.evaluation.lvis import MAX_PER_IMAGE, LVISEvaluator
from ovd.evaluation.results_file import write_results
from ovd.precision import describe_machine

ROOT = Path(__file__).parents[1]
ROUNDS = 5
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
HOTCOCO_SCRIPT = """
import json, sys
import hotcoco
truth = hotcoco.COCO(sys.argv[1])
evaluation = hotcoco.LVISEval(truth, hotcoco.LVISResults(truth, sys.argv[2]), "bbox")
evaluation.evaluate()
evaluation.accumulate()
evaluation.summarize()
print(json.dumps(evaluation.get_results()))
"""


def evaluate_with_ovd(annotations: Path, results: Path, output: Path) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "tools" / "eval.py"), "--results", str(results), "--format", "lvis"]
    subprocess.run(
        [*command, "--annotations", str(annotations), "--output", str(output)], check=True, capture_output=True
    )
    return json.loads((output / "metrics.json").read_text())["metrics"]


def evaluate_with_hotcoco(annotations: Path, results: Path) -> dict[str, float]:
    command = [sys.executable, "-c", HOTCOCO_SCRIPT, str(annotations), str(results)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="as many images as LVIS's validation set has")
    num_images = 19_809 if parser.parse_args().full else 2_000
    with tempfile.TemporaryDirectory() as folder:
        annotations, results, output = (Path(folder) / name for name in ("annotations.json", "results.json", "output"))
        write_annotations(annotations, num_images, boxes_per_image=12, mask_numbers=40)
        detections = detections_of(annotations, MAX_PER_IMAGE)
        write_results(results, detections)
        figures, expected = evaluate_with_ovd(annotations, results, output), evaluate_with_hotcoco(annotations, results)
        differences = [abs(figures[name] - expected[name]) for name in NAMES]
        if max(differences) > 1e-9:
            raise SystemExit(f"no ratio: ours {figures}, hotcoco alone {expected}")

        truth = load_truth(annotations, format="lvis")
        evaluator = LVISEvaluator(truth, ())
        evaluator.add_results(detections, source="memory")
        dataset = truth.as_dataset()
        columns = (detections.image_ids, detections.boxes_xywh, detections.scores, detections.category_ids)
        rows = np.column_stack(columns)

        def engine_alone() -> None:
            known = hotcoco.COCO(dataset)
            evaluation = hotcoco.LVISEval(known, hotcoco.LVISResults(known, rows), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()

        seconds = measure_seconds(
            {
                "from files": partial(evaluate_with_ovd, annotations, results, output),
                "from files, hotcoco alone": partial(evaluate_with_hotcoco, annotations, results),
                "from arrays": evaluator.evaluate,
                "from arrays, hotcoco alone": engine_alone,
            },
            torch.device("cpu"),
            rounds=ROUNDS,
        )
    result = {
        "machine": describe_machine(torch.device("cpu")),
        "images": num_images,
        "detections": len(detections),
        "milliseconds": milliseconds(seconds),
        "ratio": {
            f"time of hotcoco alone, {name}": time_ratio(seconds, name, f"{name}, hotcoco alone")
            for name in ("from files", "from arrays")
        },
    }
    print(json.dumps(result, indent=2))
    save("lvis_eval", result, torch.device("cpu"))


if __name__ == "__main__":
    main()
