"""Measure pseudo-labeling end to end against the detector's forward pass, and against a loop over single images.

    python bench/pseudo_label.py [--device cuda]
    python bench/pseudo_label.py --config configs/lvis_base_rn50.yaml --size 640 --pairs 16 --rounds 5

Captioned scenes of the embedded world through a fresh detector, by default of the quick start's form. End to end is
what tools/pseudo_label.py does: index and hash the shards, decode, encode the captions, forward pass, non-maximum
suppression, write. The forward pass alone has its batches ready on the device; the loop takes one image after another
through the same steps. If scores differ, no ratio is given.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from inputs import TEACHER_CONFIG, build_bench_teacher, write_scenes
from measured import measure_seconds, save, time_ratio

from ovd.config.labeling import LabelOptions
from ovd.data.images.read import read_image
from ovd.data.pairs.tar import PairShards
from ovd.model.query_texts import QueryTexts
from ovd.precision import describe_machine
from ovd.selftrain.labels import read_labels
from ovd.selftrain.pseudo_label import label_shards
from ovd.text.encoder import encode_tokens

NUM_COMPARED = 5
LARGEST_DIFFERENCE = 0.02  # bf16 rounds differently in another batch size
LABELS = LabelOptions(queries="caption")


def best_scores(scores: np.ndarray) -> np.ndarray:
    return np.pad(scores[:NUM_COMPARED], (0, max(0, NUM_COMPARED - len(scores))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=TEACHER_CONFIG, help="config of the detector")
    parser.add_argument("--size", type=int, default=192, help="side of the scenes in pixels (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=128, help="number of pairs (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: %(default)s")
    arguments = parser.parse_args()
    device, num_pairs = arguments.device, arguments.pairs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "pairs", num_pairs, arguments.size)
        pairs = PairShards(folder / "pairs")
        bench = build_bench_teacher(device, folder / "pairs", LABELS, arguments.config)
        inference = bench.inference
        images = [torch.from_numpy(read_image(pairs[row].image)).permute(2, 0, 1) for row in range(num_pairs)]
        batches = [batch.to(device) for batch in torch.stack(images).split(LABELS.batch_size)]

        @torch.no_grad()
        def forward() -> None:
            for batch in batches:
                with inference.compute.autocast():
                    predictions = inference.detector(batch)
            assert predictions.embeddings.isfinite().all()

        num_runs = 0

        def end_to_end() -> None:
            nonlocal num_runs
            num_runs += 1
            label_shards(folder / "pairs", folder / f"labels-{num_runs}", bench.teacher, bench.texts, LABELS)

        naive_scores: list[np.ndarray] = []

        def image_by_image() -> None:
            naive_scores.clear()
            rows = []
            for position in range(num_pairs):
                pair = pairs[position]
                text = encode_tokens(bench.clip, bench.clip.tokenizer([pair.caption]))
                found = inference.image(QueryTexts(text), read_image(pair.image))
                rows.append({name: part.tolist() for name, part in asdict(found).items()})
                naive_scores.append(best_scores(found.scores.numpy()))
            (folder / "naive.json").write_text(json.dumps(rows))

        jobs: dict[str, Callable[[], None]] = {
            "forward_s": forward, "end_to_end_s": end_to_end, "image_by_image_s": image_by_image
        }  # fmt: skip
        raw = measure_seconds(jobs, device, rounds=arguments.rounds)
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
    result = {
        "machine": describe_machine(device),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "boxes": sum(map(len, scores)),
        "raw": raw,
        "ratio": {
            "time of the forward pass": time_ratio(raw, "end_to_end_s", "forward_s"),
            "time of image by image": time_ratio(raw, "end_to_end_s", "image_by_image_s"),
        },
        "largest_difference": max(differences),
    }
    print(json.dumps(result, indent=2))
    save("pseudo_label", result, device)


if __name__ == "__main__":
    main()
