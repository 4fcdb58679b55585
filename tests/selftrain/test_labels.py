"""The file of a shard's pseudo-labels is read as written; incomplete files and those of other shards are refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import damaged
from ragged_rows import ragged
from safetensors.numpy import load_file
from torch.nn import functional as F

from ovd.data.pairs.manifest import list_shards
from ovd.data.pairs.shard_index import ShardIndex
from ovd.fault import Fault
from ovd.files import atomic_write, remove_stale_temporaries
from ovd.selftrain.labels import ShardLabels, label_files, read_labels, read_shard_index, write_labels
from ovd.text.bank import TextBank

SETTINGS = {"teacher": "none", "score_threshold": 0.05}


def some_labels(num_pairs: int) -> ShardLabels:
    """Make labels in which pair i has i % 3 boxes and i % 4 of five texts as queries; every fifth image is
    unreadable."""
    rng = np.random.default_rng(0)
    num_boxes = [row % 3 for row in range(num_pairs)]
    return ShardLabels(
        keys=tuple(f"{row:04d} é" for row in range(num_pairs)),
        reasons=tuple(Fault("F9", "cannot be decoded") if row % 5 == 4 else None for row in range(num_pairs)),
        image_sizes=rng.integers(1, 5000, (num_pairs, 2)),
        texts=("an anchor", 'quotes "and" \\', "naïve café", "名前", "two\tspaces"),
        queries=ragged([list(range(row % 4)) for row in range(num_pairs)], np.int64),
        boxes=ragged([rng.random((count, 4)).tolist() for count in num_boxes], np.float32, 4),
        scores=ragged([rng.random(count).tolist() for count in num_boxes], np.float32),
        box_texts=ragged([rng.integers(0, 5, count).tolist() for count in num_boxes], np.int64),
    )


def some_variants(num_texts: int = 5) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((num_texts, 3, 7)).astype(np.float16)


def some_index(keys: tuple[str, ...]) -> ShardIndex:
    offsets = np.arange(3 * len(keys)).reshape(-1, 3)
    return ShardIndex(np.array([key.encode() for key in keys], np.bytes_), 1024 * offsets, 7 * offsets, 1 << 40)


def write(path: Path, labels: ShardLabels, variants: np.ndarray | None = None, text_tower: str = "tower") -> str:
    variants = some_variants() if variants is None else variants
    index = some_index(labels.keys)
    return write_labels(path, labels, index=index, variants=variants, text_tower=text_tower, settings=SETTINGS)


def assert_equal(one: ShardLabels, other: ShardLabels) -> None:
    assert (one.keys, one.reasons, one.texts) == (other.keys, other.reasons, other.texts)
    np.testing.assert_array_equal(one.image_sizes, other.image_sizes, strict=True)
    for name in ("queries", "boxes", "scores", "box_texts"):
        for part in ("values", "offsets"):
            here, there = getattr(getattr(one, name), part), getattr(getattr(other, name), part)
            np.testing.assert_array_equal(here, there, strict=True)


@pytest.mark.parametrize("num_pairs", [0, 1, 13])
def test_what_is_written_is_read(tmp_path, num_pairs):
    path, labels = tmp_path / "00000.safetensors", some_labels(num_pairs)
    sha256 = write(path, labels)
    assert_equal(read_labels(path), labels)
    index, expected = read_shard_index(path), some_index(labels.keys)
    for name in ("keys", "offsets", "sizes"):
        np.testing.assert_array_equal(getattr(index, name), getattr(expected, name), strict=num_pairs > 0)
    assert index.num_bytes == 1 << 40
    line = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert sha256 == line.split()[0]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_no_texts_at_all(tmp_path):
    path = tmp_path / "x.safetensors"
    labels = replace(some_labels(1), texts=())
    write(path, labels, some_variants(0))
    assert_equal(read_labels(path), labels)
    assert TextBank(path).names == ()


def test_other_readers_of_the_format_agree(tmp_path):
    path, labels = tmp_path / "x.safetensors", some_labels(9)
    write(path, labels)
    arrays = load_file(path)
    np.testing.assert_array_equal(arrays["boxes"], labels.boxes.values, strict=True)
    np.testing.assert_array_equal(arrays["box_texts"], labels.box_texts.values)
    np.testing.assert_array_equal(arrays["variants"], some_variants(), strict=True)


def test_a_text_bank_opens_the_same_file(tmp_path):
    path, labels = tmp_path / "x.safetensors", some_labels(9)
    write(path, labels, text_tower="tower of the student")
    bank = TextBank(path, text_tower="tower of the student")
    assert bank.names == labels.texts
    rows = bank.rows(np.repeat(np.arange(5), 3), np.tile(np.arange(3), 5))
    torch.testing.assert_close(rows, F.normalize(torch.from_numpy(some_variants()).float().view(15, 7), dim=-1))
    with pytest.raises(ValueError, match="a different text tower"):
        TextBank(path, text_tower="another")


def test_bytes_depend_on_the_content_alone(tmp_path):
    path, other = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    write(path, some_labels(13))
    write(other, some_labels(13))
    assert other.read_bytes() == path.read_bytes()
    write(other, replace(some_labels(13), reasons=(Fault("F30", "the caption is empty"), *some_labels(13).reasons[1:])))
    assert other.read_bytes() != path.read_bytes()


def test_files_that_are_not_whole_are_refused(tmp_path):
    path = tmp_path / "00007.safetensors"
    write(path, some_labels(13))
    whole = path.read_bytes()
    for length in [0, 1, 8, 9, *range(100, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"00007\.safetensors is not a valid file of pseudo-labels"):
            read_labels(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=r"00007\.safetensors is not a valid file"):
        read_labels(path)


def test_other_files_are_refused(tmp_path, untrained_clip):
    from ovd.text.bank import build_bank
    from ovd.text.sources import TextSources

    bank = build_bank(untrained_clip, ["anchor"], [()], TextSources(templates="none"), folder=tmp_path)
    for path in (tmp_path, tmp_path / "absent.safetensors", bank.path):
        with pytest.raises(ValueError, match=f"{path.name} is not a valid file of pseudo-labels"):
            read_labels(path)


def test_more_text_than_a_file_can_hold_is_refused_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("ovd.selftrain.labels._MAX_HEADER_BYTES", 2000)
    write(tmp_path / "x.safetensors", some_labels(1))
    with pytest.raises(ValueError, match="make shards with fewer pairs"):
        write(tmp_path / "y.safetensors", some_labels(60))
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "00000.json"
    path.write_text("before")

    def fail_halfway() -> None:
        with atomic_write(path, "wb") as file:
            file.write(b"half")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        fail_halfway()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"00000.json": "before"}


def test_files_of_processes_that_are_no_more_are_removed_and_others_kept(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    node = os.uname().nodename
    kept = [f"b.json.{node}.1.tmp", f"c.json.{node}-other.{process.pid}.tmp", "d.tmp", f"{node}.{process.pid}.json"]
    for name in (f"a.json.{node}.{process.pid}.tmp", f"a.json.{node}.{os.getpid()}.tmp", *kept):
        (tmp_path / name).write_text("")
    remove_stale_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_labels_go_with_their_shards_also_where_names_and_endings_sort_otherwise(tmp_path):
    for folder, ending in ((tmp_path / "pairs", "tar"), (tmp_path / "labels", "safetensors")):
        folder.mkdir()
        for name in ("set.b", "set", "set.second"):
            (folder / f"{name}.{ending}").touch()
    files = label_files(tmp_path / "labels")
    assert [f"{file.stem}.tar" for file in files] == list(list_shards(tmp_path / "pairs"))
    assert files != sorted(files)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none has no labels"):
        label_files(tmp_path / "none")


def test_metadata_is_plain_json(tmp_path):
    path, labels = tmp_path / "x.safetensors", some_labels(2)
    write(path, labels)
    content = path.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert json.loads(metadata["settings"]) == SETTINGS
    assert tuple(json.loads(metadata["keys"])) == labels.keys
    assert "名前" in metadata["names"]  # escapes would take several times the space


@pytest.mark.parametrize("num_runs", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_noise_in_a_labels_file_is_read_or_named(tmp_path, num_runs):
    path, rng, num_refused = tmp_path / "labels.safetensors", np.random.default_rng(3), 0
    write(path, some_labels(6))
    whole = path.read_bytes()
    for _ in range(num_runs):
        path.write_bytes(damaged(whole, rng))
        for read in (read_labels, read_shard_index):
            try:
                read(path)
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017
                num_refused += 1
    assert num_refused > num_runs // 3
