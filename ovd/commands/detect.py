"""Detect classes of any name in an image.

    ovd detect photo.jpg --classes "umbrella, anchor:0.8, coffee cup" --run runs/quickstart

A number after a name is the minimum score of its boxes. Without one it is --threshold, which is by default that of the
detector: scores of a detector that was calibrated (train.calibration) are probabilities.

Writes photo.detections.png and photo.detections.json beside the image (or into --output).
"""

import argparse
import json
from pathlib import Path

from ovd.build.arguments import add_expert_options, expert_group
from ovd.build.detector import load_detector
from ovd.data.images import read_image
from ovd.predictor import Predictor
from ovd.visualize import choose_shown, draw_detections


def split_query(query: str) -> tuple[str, float | None]:
    """The name of a query such as `anchor:0.8`, and its minimum score, if it has one.

    Raises:
        ValueError: no name, or a minimum that is not in 0..1.
    """
    name, separator, minimum = query.rpartition(":")
    if not separator:
        return query.strip(), None
    try:
        value = float(minimum)
    except ValueError:
        return query.strip(), None  # a colon in the name
    if not 0 <= value <= 1 or not name.strip():
        raise ValueError(f"{query.strip()!r}: write it as NAME:0.8, with a minimum score from 0 to 1")
    return name.strip(), value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument(
        "--classes", required=True, help="comma-separated class names, any words; NAME:0.8 for a minimum score"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="trained detector (%(default)s)")
    add_expert_options(parser)
    parser.add_argument("--threshold", type=float, help="minimum score shown (default: the detector's own)")
    parser.add_argument("--top", type=int, default=100, help="maximum number of boxes shown (%(default)s)")
    parser.add_argument("--overlapping", action="store_true", help="show several classes at the same place")
    parser.add_argument("--size", type=int, help="longest image side in pixels (default: as trained)")
    parser.add_argument("--device", help="for example cpu or cuda:1 (default: as trained)")
    parser.add_argument("--output", type=Path, help="folder for the results (default: beside the image)")
    arguments = parser.parse_args()
    asked = [split_query(query) for query in arguments.classes.split(",") if query.strip()]
    if not asked:
        raise ValueError(f"--classes {arguments.classes!r} has no class name; write it as --classes 'umbrella, anchor'")
    names = [name for name, _ in asked]

    predictor = Predictor(
        load_detector(arguments.run, arguments.device, experts=expert_group(arguments)), size=arguments.size
    )
    threshold = predictor.threshold if arguments.threshold is None else arguments.threshold
    thresholds = [threshold if own is None else own for _, own in asked]
    image = read_image(arguments.image)
    found = choose_shown(predictor(image, names), thresholds, most=arguments.top, overlapping=arguments.overlapping)

    folder = arguments.output or arguments.image.parent
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{arguments.image.stem}.detections.png"
    draw_detections(image, found, names).save(picture)
    rows = [
        {"class": names[row], "score": round(score, 4), "box_xyxy": [round(value, 1) for value in box]}
        for box, score, row in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    ]
    picture.with_suffix(".json").write_text(json.dumps({"image": str(arguments.image), "detections": rows}, indent=1))
    for row in rows:
        print(f"{row['score']:.2f}  {row['class']:<24} {row['box_xyxy']}")
    kind = "probability" if predictor.is_calibrated else "score"
    own = ", or the one after its name" if any(minimum is not None for _, minimum in asked) else ""
    print(f"{len(rows)} objects with a {kind} of at least {threshold:.2f}{own}; see {picture}")
