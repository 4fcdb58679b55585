"""Evaluate a trained detector on a data set with any vocabulary, or an existing results file.

    python tools/eval.py runs/quickstart                                     # its own validation set
    python tools/eval.py runs/quickstart --format coco --annotations my.json --images my_images
    python tools/eval.py --results results.json --format lvis --annotations lvis_v1_val.json --engine official

LVIS files give ordinary AP (at most 300 detections per image) and fixed AP side by side; COCO files give COCO's.
"""

import argparse
from pathlib import Path

import torch

from ovd.build.detector import load_detector
from ovd.cli import run_tool
from ovd.evaluation.run import evaluate_results_file
from ovd.jobs.evaluate import evaluate_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder or checkpoint folder of a trained detector")
    parser.add_argument("--results", type=Path, help="evaluate this COCO-format results file instead of a detector")
    parser.add_argument("--annotations", type=Path, help="annotation file (default: the run's validation set)")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--format", choices=["lvis", "coco", "coco_zero_shot", "objects365"])
    parser.add_argument("--engine", choices=["hotcoco", "official"], help="default: as the run's config says, hotcoco")
    parser.add_argument("--output", type=Path, help="where results go (default: RUN/eval-NAME)")
    parser.add_argument("--size", type=int, help="longest side of an image in pixels (default: as trained)")
    parser.add_argument("--device", help="for example cpu or cuda:1 (default: as trained)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if (arguments.run is None) == (arguments.results is None):
        parser.error("give either a RUN or --results FILE")
    if arguments.results is not None:
        if arguments.annotations is None or arguments.format is None:
            parser.error("--results needs --annotations and --format")
        evaluate_results_file(
            arguments.annotations, arguments.results, arguments.format, arguments.engine or "hotcoco", arguments.output
        )
        return
    torch.set_num_threads(arguments.threads)
    file = arguments.annotations
    output = arguments.output or arguments.run / (f"eval-{file.parent.name}-{file.stem}" if file else "eval")
    evaluate_run(
        load_detector(arguments.run, arguments.device),
        output=output,
        annotations=arguments.annotations,
        images=arguments.images,
        format=arguments.format,
        engine=arguments.engine,
        size=arguments.size,
    )
    print(f"results.json, metrics.json, per_class.csv and precision_recall.png are in {output}")


if __name__ == "__main__":
    run_tool(main)
