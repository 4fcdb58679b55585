"""Pseudo-labelling end to end against the detector's plain forward, and against a loop over single images.

    python bench/pseudo_label.py [--device cuda]

Captioned scenes of the embedded world, 192 px, through a fresh detector of the quick start's form. End to end is what
tools/pseudo_label.py does: index and hash the shards, decode, encode the captions, forward, non-maximum suppression,
write. The plain forward has its batches ready on the device; the loop takes one image after another through the same
steps. Without equal scores there is no ratio.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from measured import save

from ovd.build.detector import TrainedDetector, build_detector, build_inference
from ovd.clip.load import load_clip
from ovd.config import LabelOptions, TrainConfig, load_config
from ovd.data.images import read_image
from ovd.data.pairs import PairShards, write_pair_shards
from ovd.data.world.build import pair_scene
from ovd.data.world.settings import Settings
from ovd.model.detection_options import DetectionOptions
from ovd.model.similarity import initial_bias
from ovd.precision import autocast, describe_machine
from ovd.selftrain.labels import read_labels
from ovd.selftrain.pseudo_label import label_shards
from ovd.selftrain.teacher import OvdTeacher, TextVariants
from ovd.text.encoder import encode_texts

CONFIG = Path(__file__).parents[1] / "configs" / "three_ways.yaml"
NUM_PAIRS, PAIRS_PER_SHARD = 128, 64
ROUNDS = 3
NUM_COMPARED = 5
LARGEST_DIFFERENCE = 0.02  # of bf16 in another batch size
LABELS = LabelOptions(queries="caption")
DETECTION = DetectionOptions(
    score_threshold=LABELS.score_threshold, nms_iou=0.6, max_detections=LABELS.max_boxes + 1, candidates=2000
)


def best_scores(scores: np.ndarray) -> np.ndarray:
    return np.pad(scores[:NUM_COMPARED], (0, max(0, NUM_COMPARED - len(scores))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(2)
    config = load_config(CONFIG, [f"train.device={device}"], TrainConfig)
    clip = load_clip("tiny")
    torch.manual_seed(0)
    trained = TrainedDetector(build_detector(config, clip), config, clip, ())
    inference = build_inference(trained, options=DETECTION)
    detector, low_precision = inference.detector, inference.low_precision

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings()
        drawn = (pair_scene(index, part="pairs", settings=settings) for index in range(NUM_PAIRS))
        write_pair_shards(folder / "pairs", drawn, pairs_per_shard=PAIRS_PER_SHARD)
        pairs = PairShards(folder / "pairs")
        images = [torch.from_numpy(read_image(pairs[row].image)).permute(2, 0, 1) for row in range(NUM_PAIRS)]
        batches = [batch.to(device) for batch in torch.stack(images).split(LABELS.batch_size)]

        @torch.no_grad()
        def forward() -> None:
            for batch in batches:
                with autocast(device, low_precision):
                    predictions = detector(batch)
            finish()
            assert predictions.embeddings.isfinite().all()

        with torch.no_grad(), autocast(device, low_precision):
            embeddings = detector(batches[0]).embeddings.flatten(0, 1).cpu()
        captions = encode_texts(clip, [pairs.caption(row) for row in range(LABELS.batch_size)])
        detector.set_bias(initial_bias(embeddings, captions, scale=detector.scale.item()))

        texts = TextVariants(clip, None)
        teacher = OvdTeacher(inference, texts, run="fresh")
        num_runs = 0

        def end_to_end() -> None:
            nonlocal num_runs
            num_runs += 1
            label_shards(folder / "pairs", folder / f"labels-{num_runs}", teacher, texts, LABELS)

        naive_scores: list[np.ndarray] = []

        def image_by_image() -> None:
            naive_scores.clear()
            rows = []
            for position in range(NUM_PAIRS):
                pair = pairs[position]
                found = inference.image(encode_texts(clip, [pair.caption]), read_image(pair.image))
                rows.append({name: part.tolist() for name, part in asdict(found).items()})
                naive_scores.append(best_scores(found.scores.numpy()))
            (folder / "naive.json").write_text(json.dumps(rows))

        jobs: dict[str, Callable[[], None]] = {
            "forward_s": forward, "end_to_end_s": end_to_end, "image_by_image_s": image_by_image
        }  # fmt: skip
        raw: dict[str, list[float]] = {name: [] for name in jobs}
        for round_number in range(1 + ROUNDS):  # the first warms up
            for name, job in jobs.items():
                start = time.perf_counter()
                job()
                if round_number:
                    raw[name].append(time.perf_counter() - start)

        shards = [read_labels(path) for path in sorted((folder / "labels-1").glob("*.safetensors"))]
        scores = [of_shard.scores[row] for of_shard in shards for row in range(len(of_shard.keys))]
        reasons = [reason for of_shard in shards for reason in of_shard.reasons]
        differences = [
            float(np.abs(best_scores(ours) - theirs).max())
            for ours, theirs, reason in zip(scores, naive_scores, reasons, strict=True)
            if not reason
        ]
    if max(differences) > LARGEST_DIFFERENCE:
        raise SystemExit(f"no ratio: scores in batches and one by one differ by {max(differences):.3f}")
    median = {name: statistics.median(times) for name, times in raw.items()}
    result = {
        "machine": describe_machine(device),
        "pairs": NUM_PAIRS,
        "boxes": sum(map(len, scores)),
        "raw": raw,
        "ratio": {
            "time of the forward pass": round(median["end_to_end_s"] / median["forward_s"], 3),
            "time of image by image": round(median["end_to_end_s"] / median["image_by_image_s"], 3),
        },
        "largest_difference": max(differences),
    }
    print(json.dumps(result, indent=2))
    save("pseudo_label", result, device)


if __name__ == "__main__":
    main()
