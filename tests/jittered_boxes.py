"""Detections to evaluate: the true boxes of a data set, displaced at random."""

import numpy as np


def jittered_boxes(dataset: dict, *, per_box: int, spread: float, rng: np.random.Generator) -> list[dict]:
    """Make records of a results file, `per_box` for each annotation: a fifth of the wrong class, many with equal
    scores, some without area. `spread` is the standard deviation of the displacement, relative to a box's sides."""
    category_ids = [category["id"] for category in dataset["categories"]]
    records = []
    for annotation in dataset["annotations"]:
        for _ in range(per_box):
            x, y, width, height = annotation["bbox"] + rng.normal(0, spread, 4) * (annotation["bbox"][2:] * 2)
            wrong = rng.random() < 0.2
            records.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(rng.choice(category_ids)) if wrong else annotation["category_id"],
                    "bbox": [float(x), float(y), max(float(width), 0.0), max(float(height), 0.0)],
                    "score": round(float(rng.random()), 2),
                }
            )
    return records
