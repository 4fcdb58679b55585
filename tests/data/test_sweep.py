"""Random edits of a good annotation file, image and shard: each gives the right values or one clear error."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import annotation_edits
import image_edits
import numpy as np
import pytest
import shard_edits
from PIL import Image

from ovd.data.annotations import load_annotations
from ovd.data.formats.options import FormatOptions
from ovd.data.images.image_file import ImageError
from ovd.data.images.read import decode_image
from ovd.data.images.sizes import read_sizes
from ovd.data.index import AnnotationIndex
from ovd.data.pairs.tar import PairShards
from ovd.data.report import DataError, DataReport

SEED = 20_000
LONGEST_S = 10


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for image_id, (height, width) in annotation_edits.SIZES.items():
        Image.new("RGB", (width, height)).save(folder / f"{image_id}.png")
    return folder


def rows_of(index: AnnotationIndex) -> dict[int, tuple]:
    """Return size, objects and crowds by image, without regard to their order."""
    names = [category.name for category in index.categories]
    found = {}
    for image in range(len(index)):
        record, labels = index.record(image), index.record(image).labels
        corners = labels.boxes.round(2).tolist()
        objects = [(names[row], *box) for row, box in zip(labels.classes.tolist(), corners, strict=True)]
        crowds = sorted(map(tuple, labels.crowd_boxes.round(2).tolist()))
        found[record.id] = (record.height, record.width, sorted(objects), crowds)
    return found


def rows_expected(case: annotation_edits.Case) -> dict[int, tuple]:
    expected = {}
    for image_id, (height, width) in case.sizes.items():
        objects: list[tuple] = []
        crowds: list[tuple] = []
        for item in case.objects:
            if item.image_id == image_id and item.is_read:
                x, y, w, h = item.box
                corners = tuple(np.array([x, y, x + w, y + h], np.float32).round(2).tolist())
                (crowds if item.is_crowd else objects).append(corners if item.is_crowd else (item.name, *corners))
        expected[image_id] = (height, width, sorted(objects), sorted(crowds))
    return expected


def check_annotation_edit(name: str, seed: int, images: Path) -> bool:
    """Check an edited file against the outcome it must have; return whether it was refused."""
    case = annotation_edits.good_case()
    annotation_edits.EDITS[name](case, np.random.default_rng(seed))
    path = images / "edited.json"
    path.write_bytes(case.encoded())
    report, options = DataReport(), FormatOptions(**case.options)
    started = time.perf_counter()
    where = f"edit {name}, seed {seed}"
    try:
        index = load_annotations(path, images, format="coco", report=report, options=options)
    except DataError as error:
        assert error.code == case.refused, f"{where}: {error}"  # noqa: PT017
        assert str(path) in str(error), where  # noqa: PT017
        assert "\n" not in str(error), where  # noqa: PT017
        return True
    finally:
        assert time.perf_counter() - started < LONGEST_S, where
    assert case.refused is None, f"{where}: was read"
    assert rows_of(index) == rows_expected(case), where
    assert report.counts() == case.counts, where
    return False


def check_image_edit(name: str, seed: int, folder: Path) -> bool:
    where = f"edit {name}, seed {seed}"
    content, right = image_edits.EDITS[name](np.random.default_rng(seed))
    path = folder / "edited.jpg"
    path.write_bytes(content)
    started = time.perf_counter()
    try:
        decoded = decode_image(path, expected_size=(image_edits.HEIGHT, image_edits.WIDTH))
    except ImageError as error:
        assert error.code in right.codes, f"{where}: {error}"  # noqa: PT017
        assert str(path) in str(error), where  # noqa: PT017
        return True
    finally:
        assert time.perf_counter() - started < LONGEST_S, where
    assert right.pixels is not None, f"{where}: was read"
    assert decoded.pixels.shape == right.pixels.shape, where
    assert np.abs(decoded.pixels.astype(int) - right.pixels).mean() <= right.tolerance, where
    assert right.num_repairs in (-1, len(decoded.repairs())), where
    assert read_sizes([path], expected=[(image_edits.HEIGHT, image_edits.WIDTH)]) == [decoded.pixels.shape[:2]], where
    return False


def check_shard_edit(name: str, seed: int, folder: Path) -> bool:
    where = f"edit {name}, seed {seed}"
    case = shard_edits.good_case()
    shard_edits.EDITS[name](case, np.random.default_rng(seed))
    (folder / "shards").mkdir(exist_ok=True)
    path = folder / "shards" / "00000.tar"
    path.write_bytes(case.encoded())
    started = time.perf_counter()
    try:
        shards = PairShards(path.parent)
    except DataError as error:
        assert error.code == case.refused, f"{where}: {error}"  # noqa: PT017
        assert str(path) in str(error), where  # noqa: PT017
        return True
    finally:
        assert time.perf_counter() - started < LONGEST_S, where
    assert case.refused is None, f"{where}: was read"
    pairs = [shards[row] for row in range(len(shards))]
    assert {pair.key: (pair.image, pair.caption) for pair in pairs} == case.pairs, where
    assert (len(pairs), shards.rejected, shards.num_failed) == (len(case.pairs), case.rejected, case.failed), where
    return False


def sweep(check: Callable[[str, int, Path], bool], edits: Mapping[str, object], folder: Path, count: int) -> None:
    names = list(edits)
    refused = [check(names[row % len(names)], SEED + row, folder) for row in range(count)]
    assert 0.2 * count < sum(refused) < 0.8 * count


SWEEPS = [
    (check_annotation_edit, annotation_edits.EDITS, 3000),
    (check_image_edit, image_edits.EDITS, 1000),
    (check_shard_edit, shard_edits.EDITS, 1000),
]


@pytest.mark.parametrize(("check", "edits", "count"), SWEEPS, ids=["annotations", "image", "shard"])
def test_some_edits(check, edits, count, images):
    sweep(check, edits, images, count // 20)


@pytest.mark.slow
@pytest.mark.parametrize(("check", "edits", "count"), SWEEPS, ids=["annotations", "image", "shard"])
def test_five_thousand_edits(check, edits, count, images):
    sweep(check, edits, images, count)
