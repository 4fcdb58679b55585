"""Measure the start of a training on labeled image-text pairs: reading and filtering the labels, and their memory.

    python bench/labeled_pairs.py

Label files have random boxes in clusters, as a teacher gives them: 30 boxes and three texts per pair. The filter
`one_to_one` is compared with a loop over the pairs, on one file; if their boxes differ, no ratio is given. Then all
files are opened as training does: time and memory per pair, and the totals for the twelve million pairs of CC12M.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from measured import measure_seconds, resident_bytes, save, time_ratio
from torchvision.ops import box_iou

from ovd.config.training import BoxFilters
from ovd.data.index import Ragged
from ovd.data.pairs.shard_index import ShardIndex
from ovd.precision import describe_machine
from ovd.selftrain.filter import SAME_PLACE_IOU, filter_labels
from ovd.selftrain.labeled_pairs import LabeledPairs, limit_boxes_per_text, read_filtered_labels
from ovd.selftrain.labels import ShardLabels, read_labels, shard_name, write_labels
from ovd.selftrain.ledger import LabelCounts, Ledger, open_labeled_shards
from ovd.text.bank import TextBank
from ovd.text.pair_texts import PairTexts

NUM_SHARDS, PAIRS, BOXES, QUERIES, TEXTS, DIM = 20, 5_000, 30, 3, 6_000, 8
CC12M_PAIRS = 12_000_000
ROUNDS = 3
MAX_PER_TEXT = 100
FILTERS = BoxFilters(keep="one_to_one", min_score=0.15)


def random_labels(number: int) -> ShardLabels:
    generator = np.random.default_rng(number)
    queries = np.sort(generator.permuted(np.tile(np.arange(TEXTS // QUERIES), (PAIRS, 1)), axis=1)[:, :QUERIES], axis=1)
    objects = generator.uniform(60, 440, (PAIRS, 4, 2))
    chosen = generator.integers(4, size=(PAIRS, BOXES, 1)).repeat(2, axis=2)
    centers = np.take_along_axis(objects, chosen, axis=1) + generator.normal(0, 8, (PAIRS, BOXES, 2))
    halves = generator.uniform(30, 60, (PAIRS, BOXES, 2))
    boxes = np.concatenate([centers - halves, centers + halves], axis=2).astype(np.float32)
    scores = -np.sort(-generator.beta(1, 4, (PAIRS, BOXES)), axis=1).astype(np.float32)
    texts = np.take_along_axis(queries, generator.integers(QUERIES, size=(PAIRS, BOXES)), axis=1)
    box_offsets = np.arange(PAIRS + 1) * BOXES
    return ShardLabels(
        keys=tuple(f"{number:05d}{row:04d}" for row in range(PAIRS)),
        reasons=(None,) * PAIRS,
        image_sizes=np.full((PAIRS, 2), 500),
        texts=tuple(f"noun {number if row % 2 else ''} {row}" for row in range(TEXTS)),
        queries=Ragged(queries.reshape(-1), np.arange(PAIRS + 1) * QUERIES),
        boxes=Ragged(boxes.reshape(-1, 4), box_offsets),
        scores=Ragged(scores.reshape(-1), box_offsets),
        box_texts=Ragged(texts.reshape(-1), box_offsets),
    )


def write_shard(folder: Path, number: int) -> Path:
    """Write a labels file with its ledger, and a shard of which only the size is read."""
    labels = random_labels(number)
    size = 1024
    index = ShardIndex(
        keys=np.array([key.encode() for key in labels.keys]),
        offsets=np.zeros((PAIRS, 3), np.int64),
        sizes=np.zeros((PAIRS, 3), np.int64),
        num_bytes=size,
    )
    (folder / f"{number:05d}.tar").write_bytes(bytes(size))
    file = folder / f"{number:05d}.safetensors"
    variants = np.ones((TEXTS, 1, DIM), np.float16)
    settings = {"text_tower": "none"}
    sha256 = write_labels(file, labels, index=index, variants=variants, text_tower="none", settings=settings)
    counts = LabelCounts(
        pairs=PAIRS, pairs_with_boxes=PAIRS, capped_pairs=0, boxes=PAIRS * BOXES, texts=TEXTS, long_texts=0, reasons={}
    )
    Ledger(shard_name(file), "", sha256, settings, counts, {}).write(file)
    return file


def pair_by_pair(labels: ShardLabels) -> Bool[np.ndarray, " M"]:
    """Return which boxes `FILTERS` keeps, in a loop over the pairs."""
    kept = np.zeros(len(labels.scores.values), bool)
    texts, boxes = labels.box_texts.values, torch.from_numpy(labels.boxes.values)
    for start, end in itertools.pairwise(labels.boxes.offsets.tolist()):
        rows = start + np.flatnonzero(labels.scores.values[start:end] >= FILTERS.min_score)
        rows = rows[np.argsort(-labels.scores.values[rows], kind="stable")]
        same_place = (box_iou(boxes[rows], boxes[rows]) > SAME_PLACE_IOU).numpy()
        possible = np.ones(len(rows), bool)
        for place, row in enumerate(rows.tolist()):
            if possible[place]:
                kept[row] = True
                possible &= ~same_place[place] & (texts[rows] != texts[row])
    return kept


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [write_shard(folder, number) for number in range(NUM_SHARDS)]
        labels = read_labels(files[0])
        ours, _ = filter_labels(labels, FILTERS)
        if (ours != pair_by_pair(labels)).any():
            raise SystemExit("no ratio: the loop keeps other boxes")
        forms = {"filter_s": lambda: filter_labels(labels, FILTERS), "pair_by_pair_s": lambda: pair_by_pair(labels)}
        device = torch.device("cpu")
        raw = measure_seconds(forms, device, rounds=ROUNDS)

        before, start = resident_bytes(), time.perf_counter()
        shards = open_labeled_shards(folder, files)
        kept, _ = read_filtered_labels(files, FILTERS, shards)
        texts = PairTexts(map(TextBank, files), [of_shard.pair_counts for of_shard in kept], first_id=0)
        kept, _ = limit_boxes_per_text(kept, texts, MAX_PER_TEXT)
        pairs = LabeledPairs(shards, kept, texts, with_boxes=True, box_counts={})
        seconds, grown = time.perf_counter() - start, resident_bytes() - before
        num_pairs = NUM_SHARDS * PAIRS
        result = {
            "machine": describe_machine(device),
            "pairs": len(pairs),
            "raw": raw,
            "times_pair_by_pair": time_ratio(raw, "pair_by_pair_s", "filter_s"),
            "start_s": seconds,
            "start_us_a_pair": 1e6 * seconds / num_pairs,
            "resident_bytes_a_pair": grown / num_pairs,
            "file_bytes_a_pair": sum(file.stat().st_size for file in files) / num_pairs,
            "cc12m_start_minutes": seconds / num_pairs * CC12M_PAIRS / 60,
            "cc12m_resident_gib": grown / num_pairs * CC12M_PAIRS / 2**30,
        }
    print(json.dumps(result, indent=2))
    save("labeled_pairs", result, device)


if __name__ == "__main__":
    main()
