"""Training and evaluation batches: the right images and boxes in order, for any workers, faults and start step."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ovd.data.loading.loader
from ovd.data.annotations import load_annotations
from ovd.data.images.read import read_image
from ovd.data.index import AnnotationIndex, Labels
from ovd.data.loading.loader import Batch, EvalLoader, LoaderOptions, mix_batches, train_loader
from ovd.data.loading.mosaic import Mosaics
from ovd.data.loading.order import TrainOrder, epoch_length, epoch_order, repeat_factors
from ovd.data.loading.transforms import TrainTransform
from ovd.data.report import DataError, DataReport

NUM_IMAGES = 10
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")


@pytest.fixture
def index(tmp_path) -> AnnotationIndex:
    """Ten images of various sizes; image 3 has no object, image 4 a crowd; class row 2 is in one image only."""
    generator = np.random.default_rng(0)
    images: list[dict] = []
    annotations: list[dict] = []
    for row in range(NUM_IMAGES):
        height, width = 40 + 3 * row, 70 - 2 * row
        labels = {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
        images.append({"id": 100 + row, "height": height, "width": width, "file_name": f"{row}.png", **labels})
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        for number in range(0 if row == 3 else 2):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": 100 + row,
                    "category_id": 3 if row == 7 else 1 + number,
                    "bbox": [number, 2, 20, 30],
                    "iscrowd": int(row == 4 and number == 1),
                }
            )
    categories: list[dict] = [
        {"id": row, "name": f"class {row}", "synonyms": [], "frequency": "f"} for row in (1, 2, 3)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return load_annotations(path, tmp_path, format="lvis", report=DataReport())


def untouched(pixels: np.ndarray, labels: Labels, _seed: int) -> tuple[np.ndarray, Labels]:
    return pixels, labels


def order_of(index: AnnotationIndex, *, batch_size: int = 4, seed: int = 1, **changes) -> TrainOrder:
    settings = {"repeat": np.ones(len(index)), "batch_size": batch_size, "seed": seed}
    return TrainOrder(num_images=len(index), **{**settings, **changes})


def load_train(
    index: AnnotationIndex, order: TrainOrder | None = None, *, steps: range = range(6), transform=untouched, **changes
) -> list[Batch]:
    settings = {"workers": 0}
    return list(train_loader(index, order or order_of(index), transform, steps, **{**settings, **changes}))


def as_bytes(batch: Batch) -> list:
    tensors = [batch.images, batch.sizes]
    for targets in batch.targets:
        tensors += vars(targets).values()
    return [(tuple(t.shape), t.dtype, t.numpy().tobytes()) for t in tensors] + [batch.image_ids, batch.skipped]


def test_repeat_factors_are_those_of_the_lvis_paper(index):
    # Of 10 images, class row 0 is in 8, row 1 in 7 (one box of it is a crowd), row 2 in one.
    assert repeat_factors(index, 0.0).tolist() == [1] * NUM_IMAGES
    expected = np.ones(NUM_IMAGES)
    expected[7] = np.sqrt(0.4 / 0.1)
    np.testing.assert_allclose(repeat_factors(index, 0.4), expected)
    expected = np.full(NUM_IMAGES, np.sqrt(0.9 / 0.7))
    expected[[3, 4, 7]] = 1, np.sqrt(0.9 / 0.8), 3
    np.testing.assert_allclose(repeat_factors(index, 0.9), expected)
    assert repeat_factors(replace_images(index, 0), 0.5).shape == (0,)


def replace_images(index: AnnotationIndex, count: int) -> AnnotationIndex:
    """Keep the first `count` images only."""
    ragged = ("boxes", "classes", "crowd_boxes", "negative_classes", "not_exhaustive_classes")
    cut = {
        name: replace(labels, values=labels.values[: labels.offsets[count]], offsets=labels.offsets[: count + 1])
        for name, labels in ((name, getattr(index, name)) for name in ragged)
    }
    return replace(index, image_ids=index.image_ids[:count], image_sizes=index.image_sizes[:count], **cut)


def test_epochs_have_one_length_and_hold_every_image_floor_or_ceil_times():
    repeat = np.array([1, 1.3, 2.75, 1, 1.01, 3.5, 1])
    assert epoch_length(repeat) == 12
    counts = np.array(
        [
            np.bincount(epoch_order(num_images=7, repeat=repeat, seed=5, epoch=epoch), minlength=7)
            for epoch in range(3000)
        ]
    )
    assert (counts.sum(axis=1) == 12).all()
    stretched = repeat * 12 / repeat.sum()
    assert (counts >= np.floor(stretched)).all()
    assert (counts <= np.ceil(stretched)).all()
    np.testing.assert_allclose(counts.mean(axis=0), stretched, atol=0.03)


def test_epochs_without_repeats_are_permutations_that_differ_by_epoch_and_seed():
    orders = [
        tuple(epoch_order(num_images=500, repeat=np.ones(500), seed=seed, epoch=epoch).tolist())
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert all(sorted(order) == list(range(500)) for order in orders)
    assert len(set(orders)) == 4
    assert epoch_order(num_images=500, repeat=np.ones(500), seed=0, epoch=1).tolist() == list(orders[1])
    assert epoch_order(num_images=0, repeat=np.ones(0), seed=0, epoch=0).tolist() == []
    for repeat in (np.array([0.5, 2]), np.ones(3)):
        with pytest.raises(ValueError, match="repeat factors"):
            epoch_order(num_images=2, repeat=repeat, seed=0, epoch=0)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 30])
def test_steps_run_through_epochs_without_a_gap_from_any_start(batch_size):
    repeat = np.array([1, 1.5, 1, 2.2, 1.3])
    length = epoch_length(repeat)

    def order(first_sample: int = 0) -> TrainOrder:
        return TrainOrder(num_images=5, repeat=repeat, seed=3, batch_size=batch_size, first_sample=first_sample)

    one_order = order()
    stream = [drawn for step in range(40) for drawn in one_order.batch(step)]
    expected = [
        image
        for epoch in range(len(stream) // length + 1)
        for image in epoch_order(num_images=5, repeat=repeat, seed=3, epoch=epoch).tolist()
    ]
    assert [image for image, _ in stream] == expected[: len(stream)]
    assert len({seed for _, seed in stream}) == len(stream)
    for step in (0, 17, 39, 5):
        assert order().batch(step) == stream[step * batch_size : (step + 1) * batch_size]
    assert order(11).batch(2) == stream[11 + 2 * batch_size : 11 + 3 * batch_size]


def test_a_late_step_costs_no_more_than_an_early_one():
    order = TrainOrder(num_images=100_000, repeat=np.full(100_000, 1.25), seed=0, batch_size=16)
    start = time.process_time()
    order.batch(10**9)
    assert time.process_time() - start < 1


def test_a_batch_holds_padded_pixels_and_the_annotations(index):
    (batch,) = load_train(index, order_of(index, batch_size=NUM_IMAGES), steps=range(1))
    assert sorted(batch.image_ids) == list(range(100, 110))
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (10, 3, 96, 96)
    rows = {image_id: row for row, image_id in enumerate(batch.image_ids)}
    for image in range(NUM_IMAGES):
        record, row = index.record(image), rows[100 + image]
        height, width = batch.sizes[row].tolist()
        assert (height, width) == (record.height, record.width)
        expected = np.asarray(Image.open(record.path).convert("RGB"))
        np.testing.assert_array_equal(batch.images[row, :, :height, :width].permute(1, 2, 0), expected)
        assert batch.images[row].sum() == expected.sum(dtype=np.int64)
        targets = batch.targets[row]
        assert targets.boxes.tolist() == record.labels.boxes.tolist()
        assert targets.classes.tolist() == record.labels.classes.tolist()
        assert targets.crowd_boxes.tolist() == record.labels.crowd_boxes.tolist()
        assert targets.negative_classes.tolist() == [1]
        assert targets.not_exhaustive_classes.tolist() == [0]
        assert targets.image_texts.shape == (0,)
    assert batch.targets[rows[103]].boxes.shape == (0, 4)
    assert batch.targets[rows[104]].crowd_boxes.shape == (1, 4)


def test_batches_come_in_the_shapes_that_are_allowed_and_ranks_share_them(index):
    groups = np.arange(NUM_IMAGES) % 2
    shapes = ((96, 128), (160, 160))
    batches = load_train(index, order_of(index, groups=groups), steps=range(5), shapes=shapes)
    assert {tuple(batch.images.shape[2:]) for batch in batches} == {(96, 128)}
    for number in (0, 1):
        parts = load_train(index, order_of(index, groups=groups), steps=range(5), part=(number, 2))
        ids = [part.image_ids for part in parts]
        assert ids == [batch.image_ids[2 * number : 2 * number + 2] for batch in batches]
    with pytest.raises(ValueError, match="a batch of 4 cannot be divided among 3 ranks"):
        load_train(index, part=(0, 3))


def test_workers_and_start_step_change_nothing(index):
    (Path(index.images_root) / "5.png").unlink()
    transform = TrainTransform(size=48, scale=(0.8, 1.25), flip=0.5, color=0.2)

    def load(steps: range, **changes) -> list[list]:
        order = order_of(index, repeat=repeat_factors(index, 0.9), batch_size=3)
        return [as_bytes(batch) for batch in load_train(index, order, steps=steps, transform=transform, **changes)]

    expected = load(range(9))
    assert any(batch[-1] for batch in expected)
    for workers in (1, 2):
        assert load(range(9), workers=workers) == expected
    assert load(range(5, 9)) == expected[5:]
    assert load(range(0)) == []


@pytest.fixture
def photos(tmp_path) -> AnnotationIndex:
    """Eight JPEGs, 600 px high and 512 px wide, with a rectangle of one color on black."""
    generator = np.random.default_rng(0)
    images: list[dict] = []
    annotations: list[dict] = []
    for row in range(8):
        left, top = generator.integers(10, 300, 2).tolist()
        width, height = generator.integers(60, 200, 2).tolist()
        pixels = np.zeros((600, 512, 3), dtype=np.uint8)
        pixels[top : top + height, left : left + width] = 255
        Image.fromarray(pixels).save(tmp_path / f"{row}.jpg", quality=95)
        images.append({"id": row, "height": 600, "width": 512, "file_name": f"{row}.jpg"})
        box = {"bbox": [left, top, width, height], "iscrowd": row % 2}
        annotations.append({"id": row, "image_id": row, "category_id": 1, **box})
    path = tmp_path / "annotations.json"
    categories = [{"id": 1, "name": "rectangle"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return load_annotations(path, tmp_path, format="coco", report=DataReport())


def test_boxes_are_exact_where_less_of_a_jpeg_is_decoded(photos):
    transform = TrainTransform(size=300, scale=(0.1, 1), flip=0.5, color=0)
    order = order_of(photos, batch_size=8)
    batches = load_train(photos, order, steps=range(6), transform=transform)
    assert len(batches) == 6
    for step, batch in enumerate(batches):
        for row, (image, seed) in enumerate(order.batch(step)):
            pixels, labels = transform(read_image(photos.encoded(image)), photos.record(image).labels, seed)
            height, width = batch.sizes[row].tolist()
            assert pixels.shape == (height, width, 3)
            assert batch.targets[row].boxes.tolist() == labels.boxes.tolist()
            assert batch.targets[row].crowd_boxes.tolist() == labels.crowd_boxes.tolist()
            found = batch.images[row, :, :height, :width].permute(1, 2, 0).numpy()
            assert np.abs(found.astype(int) - pixels).mean() < 2


def test_boxes_follow_the_pixels_of_a_crop_from_a_part_of_the_sides(photos):
    transform = TrainTransform(size=100, scale=(1, 2.9), flip=0.5, color=0)
    num_boxes = num_reduced = 0
    for batch in load_train(photos, order_of(photos, batch_size=8), steps=range(6), transform=transform):
        for image, targets, (height, width) in zip(batch.images, batch.targets, batch.sizes.tolist(), strict=True):
            inside = image[1, :height, :width] > 127
            for left, top, right, bottom in torch.cat([targets.boxes, targets.crowd_boxes]).tolist():
                rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
                found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                np.testing.assert_allclose([left, top, right, bottom], [int(side) for side in found], atol=1.01)
                num_boxes += 1
            num_reduced += height == 100
    assert num_boxes > 30
    assert num_reduced > 30


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_samples_are_left_out_and_named(index, workers):
    root = Path(index.images_root)
    (root / "0.png").unlink()
    (root / "1.png").write_bytes((root / "1.png").read_bytes()[:500])
    Image.new("RGB", (9, 9)).save(root / "2.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "8.png").save(root / "8.png", exif=exif)
    (batch,) = load_train(index, order_of(index, batch_size=NUM_IMAGES), steps=range(1), workers=workers)
    assert sorted(batch.image_ids) == list(range(103, 110))
    assert len(batch.images) == len(batch.sizes) == len(batch.targets) == 7
    assert sorted(str(fault).split(": ")[0] for fault in batch.skipped) == [
        f"F12 {root / '2.png'}",
        f"F8 {root / '0.png'}",
        f"F9 {root / '1.png'}",
    ]
    assert [str(fault).split(": ")[0] for fault in batch.repaired] == [f"F12 {root / '8.png'}"]
    report = DataReport()
    report.add_batch(batch)
    assert report.num_used() == 7
    assert [report.num_skipped(code) for code in ("F8", "F9", "F12")] == [1, 1, 1]


def test_mosaics_hold_four_images_and_do_not_depend_on_workers(index):
    tile_transform = TrainTransform(size=24, scale=(0.8, 1.25), flip=0.5, color=0.2)
    mosaics = Mosaics(mosaic=0.5, weights=np.ones(NUM_IMAGES), tile_transform=tile_transform)
    transform = TrainTransform(size=48, scale=(1, 1), flip=0, color=0)

    def load(**changes) -> list[Batch]:
        return load_train(index, transform=transform, mosaics=mosaics, steps=range(12), **changes)

    expected = load()
    assert [as_bytes(b) for b in load(workers=1)] == [as_bytes(b) for b in expected]
    boxes_of_single = {100 + row: len(index.boxes[row]) for row in range(NUM_IMAGES)}
    more = [
        len(targets.boxes) > boxes_of_single[image_id]
        for batch in expected
        for targets, image_id in zip(batch.targets, batch.image_ids, strict=True)
    ]
    assert 12 < sum(more) < 36
    assert all(max(batch.images.shape[2:]) <= 64 and (batch.sizes <= 48).all() for batch in expected)


def test_a_mosaic_with_a_broken_tile_is_left_out_and_names_it(index):
    (Path(index.images_root) / "0.png").unlink()
    weights = np.eye(NUM_IMAGES)[0]  # every neighboring tile is the broken image
    mosaics = Mosaics(mosaic=1, weights=weights, tile_transform=untouched)
    (batch,) = load_train(index, mosaics=mosaics, steps=range(1))
    assert batch.image_ids == ()
    assert [str(fault).split(": ")[0] for fault in batch.skipped] == [f"F8 {Path(index.images_root) / '0.png'}"] * 4


def test_a_batch_may_lose_all_its_samples(index):
    for path in Path(index.images_root).glob("*.png"):
        path.unlink()
    batches = load_train(index, steps=range(2))
    assert len(batches) == 2
    for batch in batches:
        assert batch.images.shape == (0, 3, 32, 32)
        assert batch.sizes.shape == (0, 2)
        assert batch.targets == batch.image_ids == ()
        assert len(batch.skipped) == 4


@needs_gpu
def test_for_a_gpu_batches_of_workers_lie_in_pinned_memory(index):
    plain = load_train(index, workers=2)
    pinned = load_train(index, workers=2, pin_memory=True)
    assert [as_bytes(batch) for batch in pinned] == [as_bytes(batch) for batch in plain]
    assert all(batch.images.is_pinned() for batch in pinned)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in pinned)
    assert not any(batch.images.is_pinned() for batch in [*plain, *load_train(index, workers=0, pin_memory=True)])
    for batch in pinned:
        moved = batch.to(torch.device("cuda"))
        assert moved.images.is_cuda
        assert torch.equal(moved.images.cpu(), batch.images)
    of_evaluation = EvalLoader(index, LoaderOptions(4, workers=1), size=35, pin_memory=True)
    assert all(batch.images.is_pinned() for batch, _ in of_evaluation)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_padded_as_if_alone(index, workers):
    index = index.take(np.array([0, 9, 1, 8, 2, 7, 3, 6, 4, 5]))  # alternate landscape and portrait
    loader = EvalLoader(index, LoaderOptions(4, workers=workers), size=35)
    batches = list(loader)
    assert len(batches) == len(loader)
    rows = [index.image_ids.tolist().index(image_id) for batch, _ in batches for image_id in batch.image_ids]
    assert sorted(rows) == list(range(NUM_IMAGES))
    assert rows != sorted(rows)
    original_sizes = torch.cat([sizes for _, sizes in batches])
    assert original_sizes.tolist() == index.image_sizes[rows].tolist()
    sizes = torch.cat([batch.sizes for batch, _ in batches])
    assert (sizes.amax(dim=1) == 35).all()
    targets = [targets for batch, _ in batches for targets in batch.targets]
    for number, row in enumerate(rows):
        factors = (original_sizes[number] / sizes[number])[[1, 0, 1, 0]]
        np.testing.assert_allclose(targets[number].boxes * factors, index.record(row).labels.boxes, atol=1e-4)
    alone = {batch.image_ids: batch for batch, _ in EvalLoader(index, LoaderOptions(1, workers=0), size=35)}
    for batch, _ in batches:
        assert 1 <= len(batch.image_ids) <= 4
        for image_id, image in zip(batch.image_ids, batch.images, strict=True):
            assert torch.equal(image, alone[image_id,].images[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_stops_at_a_missing_image(index, workers):
    (Path(index.images_root) / "5.png").unlink()
    batches = iter(EvalLoader(index, LoaderOptions(1, workers=workers), size=32))
    assert next(batches)[0].image_ids == (100,)
    with pytest.raises(DataError, match=r"5\.png: file is missing; evaluation needs every image") as caught:
        list(batches)
    assert caught.value.code == "F8"


def test_no_images_and_no_folder_of_images(index):
    assert list(EvalLoader(replace_images(index, 0), LoaderOptions(4, workers=0), size=32)) == []
    with pytest.raises(ValueError, match="0 images"):
        load_train(replace_images(index, 0))
    with pytest.raises(ValueError, match="without a folder of images"):
        load_train(replace(index, images_root=None))


def killed_by_image_of_height_49(pixels: np.ndarray, labels: Labels, _seed: int) -> tuple[np.ndarray, Labels]:
    if pixels.shape[0] == 49:
        os.kill(os.getpid(), signal.SIGKILL)
    return pixels, labels


def hanging_at_image_of_height_49(pixels: np.ndarray, labels: Labels, _seed: int) -> tuple[np.ndarray, Labels]:
    if pixels.shape[0] == 49:
        time.sleep(100)
    return pixels, labels


@pytest.mark.parametrize("pin_memory", [False, pytest.param(True, marks=needs_gpu)])
@pytest.mark.parametrize(
    ("transform", "timeout_s", "reason"),
    [(killed_by_image_of_height_49, 50, "Killed"), (hanging_at_image_of_height_49, 2, "timed out")],
)
def test_a_dead_or_hanging_worker_stops_and_names_the_batch(
    index, transform, timeout_s, reason, pin_memory, monkeypatch
):
    monkeypatch.setattr(ovd.data.loading.loader, "TIMEOUT_S", timeout_s)
    order = order_of(index, batch_size=NUM_IMAGES)
    loader = train_loader(index, order, transform, range(7, 9), workers=1, pin_memory=pin_memory)
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match=rf"step 7 \(image ids \[.*103.*\]\) failed: .*{reason}"):
        next(loader)
    del loader
    assert time.perf_counter() - start < 60


def killed_by_the_second_image(pixels: np.ndarray, labels: Labels, _seed: int) -> tuple[np.ndarray, Labels]:
    count = getattr(killed_by_the_second_image, "count", 0) + 1
    killed_by_the_second_image.count = count  # type: ignore[attr-defined]
    if count == 2:
        time.sleep(0.5)  # time for the previous batch to be sent
        os.kill(os.getpid(), signal.SIGKILL)
    return pixels, labels


def test_a_death_between_two_batches_is_raised_with_the_next_one(index):
    loader = train_loader(index, order_of(index, batch_size=1), killed_by_the_second_image, range(9), workers=1)
    assert len(next(loader).image_ids) == 1
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:  # the worker dies meanwhile; its signal must not raise here
        time.sleep(0.1)
    with pytest.raises(RuntimeError, match=r"step 1 \(image ids \[1\d\d\]\) failed: .*Killed"):
        next(loader)


def test_mixed_batches_keep_both_and_pad_to_one_size(index):
    annotated = load_train(index, order_of(index, batch_size=3), steps=range(2))
    paired = load_train(index, order_of(index, batch_size=2, seed=5), steps=range(2))
    assert len(annotated) == 2
    for first, second, mixed in zip(annotated, paired, mix_batches(iter(annotated), iter(paired)), strict=True):
        assert mixed.is_pair.tolist() == [False, False, False, True, True]
        assert mixed.image_ids == first.image_ids + second.image_ids
        assert mixed.targets == first.targets + second.targets
        assert torch.equal(mixed.sizes, torch.cat([first.sizes, second.sizes]))
        assert mixed.images.shape[2:] == tuple(np.maximum(first.images.shape[2:], second.images.shape[2:]))
        for row, (height, width) in enumerate(mixed.sizes.tolist()):
            source = first.images[row] if row < 3 else second.images[row - 3]
            assert torch.equal(mixed.images[row, :, :height, :width], source[:, :height, :width])
            assert mixed.images[row, :, height:].sum() == mixed.images[row, :, :, width:].sum() == 0


def test_a_mixed_batch_of_which_one_half_was_skipped(index):
    (whole,) = load_train(index, order_of(index, batch_size=3), steps=range(1))
    for row in range(NUM_IMAGES):
        (Path(index.images_root) / f"{row}.png").unlink()
    (empty,) = load_train(index, order_of(index, batch_size=2), steps=range(1))
    (mixed,) = mix_batches(iter([whole]), iter([empty]))
    assert torch.equal(mixed.images, whole.images)
    assert mixed.is_pair.tolist() == [False] * 3
    assert len(mixed.skipped) == 2
    (mixed,) = mix_batches(iter([empty]), iter([whole]))
    assert torch.equal(mixed.images, whole.images)
    assert mixed.is_pair.tolist() == [True] * 3
    (mixed,) = mix_batches(iter([empty]), iter([empty]))
    assert mixed.image_ids == ()
