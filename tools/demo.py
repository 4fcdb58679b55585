"""Detect classes of any name in an image.

    python tools/demo.py photo.jpg --classes "umbrella, anchor, coffee cup" --run runs/quickstart

Writes photo.detections.png and photo.detections.json beside the image (or into --output).
"""

import argparse
import json
from pathlib import Path

from ovd.cli import run_tool
from ovd.data.images import read_image
from ovd.predictor import Predictor
from ovd.visualize import DEFAULT_THRESHOLD, choose_shown, draw_detections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--classes", required=True, help="comma-separated class names, any words")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="trained detector (%(default)s)")
    parser.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD, help="minimum score shown (%(default)s)")
    parser.add_argument("--top", type=int, default=100, help="maximum number of boxes shown (%(default)s)")
    parser.add_argument("--overlapping", action="store_true", help="show several classes at the same place")
    parser.add_argument("--size", type=int, help="longest image side in pixels (default: as trained)")
    parser.add_argument("--device", help="for example cpu or cuda:1 (default: as trained)")
    parser.add_argument("--output", type=Path, help="folder for the results (default: beside the image)")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.classes.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--classes {arguments.classes!r} has no class name; write it as --classes 'umbrella, anchor'")

    predictor = Predictor.load(arguments.run, device=arguments.device, size=arguments.size)
    image = read_image(arguments.image)
    found = choose_shown(
        predictor(image, names), arguments.threshold, most=arguments.top, overlapping=arguments.overlapping
    )

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
    print(f"{len(rows)} objects with a score of at least {arguments.threshold}; see {picture}")


if __name__ == "__main__":
    run_tool(main)
