"""Measure reading a step's text rows from a bank against running the text tower on their prompts.

    python bench/text_bank.py

A bank of 13,000 classes x 64 variants x 512 dimensions (852 MB, random rows) shows time and memory of a step: 256
classes, one variant each. The rows of a small bank, built by ViT-B-32's text tower with random weights, are compared
with those of the tower itself; if they differ, no ratio is given.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measured import resident_bytes, save

from ovd.clip.load import load_clip
from ovd.precision import describe_machine
from ovd.text.bank import TextBank, build_bank
from ovd.text.encoder import encode_tokens
from ovd.text.sources import TextSources
from ovd.text.tensor_file import file_header

NUM_CLASSES, NUM_VARIANTS, DIM, ROWS = 13_000, 64, 512, 256
STEPS = 300
ROUNDS = 2
COMPARED = 32


def write_random_bank(path: Path) -> None:
    """Write a bank as `build_bank` does, with random rows in place of a text tower's."""
    names = [f"class {number}" for number in range(NUM_CLASSES)]
    metadata = {"tower": "random", "names": json.dumps(names)}
    rows = np.random.default_rng(0).standard_normal((100, NUM_VARIANTS, DIM)).astype(np.float16).tobytes()
    with path.open("wb") as file:
        file.write(file_header({"variants": (np.dtype(np.float16), (NUM_CLASSES, NUM_VARIANTS, DIM))}, metadata))
        for _ in range(NUM_CLASSES // 100):
            file.write(rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        clip = load_clip("ViT-B-32", "random")
        prompts = [f"thing {number}" for number in range(ROWS)]
        compared = prompts[:COMPARED]
        small = build_bank(clip, compared, [()] * COMPARED, TextSources(templates="none"), folder=Path(folder))
        rows = small.rows(np.arange(COMPARED), np.zeros(COMPARED, np.int64))
        difference = (rows - encode_tokens(clip, clip.tokenizer(compared))).abs().max().item()
        if difference > 2e-3:
            raise SystemExit(f"no ratio: rows of the bank and of the tower differ by {difference:.1e}")

        path = Path(folder) / "large.safetensors"
        write_random_bank(path)
        before = resident_bytes()
        large = TextBank(path)
        opened = resident_bytes()
        classes = [torch.randint(NUM_CLASSES, (ROWS,), generator=generator) for _ in range(STEPS)]
        raw: dict[str, list[float]] = {"bank_ms": [], "tower_ms": []}
        grown = []
        for _ in range(ROUNDS):
            resident = resident_bytes()
            start = time.perf_counter()
            for chosen in classes:
                large.sample(chosen, generator=generator)
            raw["bank_ms"].append(1000 * (time.perf_counter() - start) / STEPS)
            grown.append((resident_bytes() - resident) / 2**20)
            start = time.perf_counter()
            encode_tokens(clip, clip.tokenizer(prompts))
            raw["tower_ms"].append(1000 * (time.perf_counter() - start))
        bank_ms = statistics.median(raw["bank_ms"])
        result = {
            "machine": describe_machine(torch.device("cpu")),
            "raw": raw,
            "ratio": {
                "time of the text tower": round(bank_ms / statistics.median(raw["tower_ms"]), 6),
                "time of 1 ms": round(bank_ms, 3),
                "memory of 64 MiB": round(max(grown) / 64, 3),
            },
            "resident_mib_when_opened": (opened - before) / 2**20,
            "resident_mib_more_after_the_steps": grown,
            "largest_difference": difference,
        }
    print(json.dumps(result, indent=2))
    save("text_bank", result, torch.device("cpu"))


if __name__ == "__main__":
    main()
