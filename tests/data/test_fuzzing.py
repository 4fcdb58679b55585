"""Parsers of untrusted bytes under fuzzing: they name the fault, in bounded memory."""

import subprocess
import sys
from pathlib import Path

import image_edits
import numpy as np
import pytest
import shard_edits
from noise import damaged
from PIL import Image

from ovd.data.images.image_file import ImageError
from ovd.data.images.read import decode_image
from ovd.data.images.sizes import read_sizes
from ovd.data.pairs.shard_index import ShardFault, index_shard

NUM_RUNS = 150
FORMATS = (*image_edits.LOSSLESS, "JPEG", "GIF", "AVIF")


def fuzz_images(folder: Path, num_runs: int) -> int:
    rng = np.random.default_rng(1)
    whole = [image_edits.encode(Image.fromarray(image_edits.scene()), format) for format in FORMATS]
    path, num_refused = folder / "noise.jpg", 0
    for run in range(num_runs):
        path.write_bytes(damaged(whole[run % len(whole)], rng))
        (size,) = read_sizes([path])
        try:
            decoded = decode_image(path)
        except ImageError as error:
            assert error.code in ("F9", "F10"), run  # noqa: PT017
            num_refused += 1
        else:
            assert size == decoded.pixels.shape[:2], run
    return num_refused


def fuzz_shards(folder: Path, num_runs: int) -> int:
    rng, path, num_refused = np.random.default_rng(2), folder / "noise.tar", 0
    for _ in range(num_runs):
        content = damaged(shard_edits.good_case().encoded(), rng)
        path.write_bytes(content)
        try:
            with path.open("rb") as file:
                index, _ = index_shard(file)
        except ShardFault:
            num_refused += 1
        else:
            assert (index.offsets + index.sizes <= len(content)).all()
    return num_refused


def check_all(folder: Path, num_runs: int) -> None:
    assert fuzz_images(folder, num_runs) > num_runs // 3
    assert fuzz_shards(folder, num_runs) > num_runs // 3


def test_some_noise(tmp_path):
    check_all(tmp_path, NUM_RUNS)


@pytest.mark.slow
def test_noise(tmp_path):
    check_all(tmp_path, 20 * NUM_RUNS)


def test_files_that_say_they_are_huge_take_no_memory(tmp_path):
    rng = np.random.default_rng(4)
    bomb, _ = image_edits.EDITS["huge"](rng)
    (tmp_path / "bomb.png").write_bytes(bomb)
    case = shard_edits.good_case()
    shard_edits.EDITS["huge_member"](case, rng)
    (tmp_path / "00000.tar").write_bytes(case.encoded())
    (tmp_path / "labels.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    (tmp_path / "deep.json").write_bytes(b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    script = f"""
import resource
from pathlib import Path
from ovd.data.annotations import load_truth
from ovd.data.images.read import decode_image
from ovd.data.pairs.tar import PairShards
from ovd.selftrain.labels import read_labels
folder = Path({str(tmp_path)!r})
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 200_000_000,) * 2)
for read in (
    lambda: decode_image(folder / "bomb.png"),
    lambda: PairShards(folder),
    lambda: read_labels(folder / "labels.safetensors"),
    lambda: load_truth(folder / "deep.json", format="coco"),
):
    try:
        read()
    except ValueError as error:
        print(getattr(error, "code", "ValueError"))
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, timeout=300)
    assert done.stdout.split() == ["F10", "F13", "ValueError", "F1"], done.stderr
