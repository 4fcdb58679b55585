"""A config becomes data, text bank, detector and optimizer: each setting reaches the object that it configures."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ovd.build.batches import sample_sizes, samples_drawn, samples_per_step, training_batches
from ovd.build.crops import views_of
from ovd.build.data import load_evaluation_index, load_training_index, load_validation_index
from ovd.build.detector import build_backbone, build_detector
from ovd.build.text import build_class_bank, read_paraphrases
from ovd.build.trained import TrainedDetector, build_own_inference
from ovd.clip.onednn import has_prepacked_ops
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config
from ovd.data.annotations import load_annotations
from ovd.data.index import AnnotationIndex
from ovd.data.loading.small_objects import SampleSizes
from ovd.data.report import DataError, DataReport
from ovd.engine.checkpoint import Checkpoint
from ovd.engine.detector_groups import build_groups
from ovd.engine.notes import NO_SAMPLES, Notes, SampleCounts
from ovd.model.convolution import Conv2d
from ovd.model.crop_encoder import View
from ovd.model.crop_options import CropOptions
from ovd.structures import Batch


def test_paraphrases_come_in_the_order_of_the_classes(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"anchor": ["holds a ship", "iron hook"], "unknown": ["something"]}))
    assert read_paraphrases(path, ["gear", "anchor"]) == [(), ("holds a ship", "iron hook")]


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"anchor": "holds a ship"}', '{"anchor": [1]}', '{"anchor": 1}', '{"anchor": ["iron hook", " "]}'],
)
def test_paraphrases_of_another_form_are_refused(tmp_path, content):
    path = tmp_path / "texts.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"texts\.json must be JSON of the form"):
        read_paraphrases(path, ["anchor"])


def test_paraphrases_of_other_classes_are_refused(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text('{"gear": ["turns"]}')
    with pytest.raises(ValueError, match="has texts for 1 class, but none for the vocabulary"):
        read_paraphrases(path, ["anchor"])


def test_a_bank_file_stands_in_for_building_one(tiny_clip, tmp_path):
    names = ["anchor", "gear", "umbrella"]

    def bank_of(names, **bank):
        config = parse_config({"output": str(tmp_path), "train": {"steps": 1}, "bank": bank}, TrainConfig, "test")
        return build_class_bank(config, tiny_clip, names, [()] * len(names))

    built = bank_of(names, cache=tmp_path)
    read = bank_of(["umbrella", "anchor"], file=built.path)
    assert read.path == built.path
    generator = torch.Generator().manual_seed
    there, here = (
        bank.sample(torch.tensor(rows), generator=generator(0)) for bank, rows in ((built, [2, 0]), (read, [0, 1]))
    )
    assert torch.equal(there, here)


def train_config(**detector) -> TrainConfig:
    train = {"steps": 1, "backbone_rate": 0.5, "layer_decay": detector.pop("layer_decay", 1.0)}
    return parse_config({"output": "x", "detector": detector, "train": train}, TrainConfig, "test")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_inference_finds_the_same_with_the_layouts_that_it_keeps(untrained_clip, precision: str):
    config = parse_config(
        {"output": "x", "detector": {"channels": 32}, "train": {"steps": 1, "precision": precision, "device": "cpu"}},
        TrainConfig,
        "test",
    )
    torch.manual_seed(0)
    detector = build_detector(config, untrained_clip).eval()
    images, sizes = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8), torch.tensor([[96, 64], [90, 60]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = detector(images)
    inference = build_own_inference(TrainedDetector(detector, config, untrained_clip, ()))
    convolution = inference.detector.get_submodule("head.class_tower.0")
    assert isinstance(convolution, Conv2d)
    assert not any(parameter.requires_grad for parameter in inference.detector.parameters())
    if torch.backends.mkldnn.is_available():
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    first, second = (inference.predict(images, sizes) for _ in range(2))  # the second has the weights laid out
    kept, layouts = convolution.frozen.cached, convolution.frozen._layouts.kept.values()
    assert kept is not None
    assert any(layout is not None for layout in layouts) == has_prepacked_ops(kept.weight.dtype)
    assert torch.equal(first.embeddings, second.embeddings)
    assert torch.equal(first.boxes, second.boxes)
    tolerance = {"float32": 1e-5, "bf16": 2e-2}[precision]
    torch.testing.assert_close(first.boxes, expected.boxes, rtol=tolerance, atol=100 * tolerance)
    cosines = F.cosine_similarity(first.embeddings.float(), expected.embeddings.float(), dim=-1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=tolerance)


def test_first_layers_of_the_backbone_are_frozen(untrained_clip):
    backbone = build_backbone(train_config(frozen_layers=2), untrained_clip.model.visual)
    layers = backbone.layers()
    assert [any(p.requires_grad for p in layer) for layer in layers] == [False, False] + [True] * (len(layers) - 2)
    with pytest.raises(ValueError, match=r"detector\.frozen_layers is 99, but tiny has"):
        build_backbone(train_config(frozen_layers=99), untrained_clip.model.visual)
    with pytest.raises(ValueError, match=r"detector\.window is only for transformers"):
        build_backbone(train_config(window=7), untrained_clip.model.visual)


def test_layers_of_the_backbone_learn_more_slowly_towards_the_input(untrained_clip):
    config = train_config(layer_decay=0.5, channels=32, num_convs=1)
    detector = build_detector(config, untrained_clip)
    groups = build_groups(detector, config.train)
    rate_of = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    assert len(rate_of) == sum(p.requires_grad for p in detector.parameters())
    layers = detector.backbone.layers()
    assert {rate_of[id(p)] for p in detector.backbone.projection_parameters()} == {0.5}
    for number, layer in enumerate(reversed(layers)):
        assert {rate_of[id(p)] for p in layer} == {0.5 * 0.5 ** (number + 1)}
    assert {rate_of[id(p)] for p in detector.head.parameters()} == {1.0}


@pytest.fixture
def world_index(miniature_world) -> AnnotationIndex:
    path = miniature_world / "annotations" / "lvis_train.json"
    return load_annotations(path, miniature_world / "images", format="lvis", report=DataReport())


def batches(index: AnnotationIndex, *, steps: int = 1, batch_size: int = 8, **data) -> list[Batch]:
    """Load batches of the world's images without augmentation, unless `data` says otherwise."""
    as_it_is = {"size": 96, "scale": [1, 1], "flip": 0, "color": 0, "workers": 0}
    values = {"output": "x", "train": {"steps": steps, "batch_size": batch_size}, "data": as_it_is | data}
    config = TrainConfig.model_validate(values)
    return list(training_batches(config, index, first_samples=NO_SAMPLES, size_divisor=16)(0))


def test_settings_of_the_augmentation_reach_the_samples(world_index):
    def batch(**data) -> Batch:
        (only,) = batches(world_index, batch_size=3, **data)
        return only

    plain = batch()
    assert torch.equal(batch(flip=1).images, plain.images.flip(3))
    assert (batch(scale=[0.5, 0.5]).sizes == 48).all()
    colored = batch(color=0.5)
    assert torch.equal(colored.sizes, plain.sizes)
    assert not torch.equal(colored.images, plain.images)


def test_images_are_drawn_as_often_as_their_repeat_factor(world_index, monkeypatch):
    thresholds = []

    def factors(index: AnnotationIndex, threshold: float) -> np.ndarray:
        thresholds.append(threshold)
        return np.array([1.0, 1.0, 9.0, 1.0])

    monkeypatch.setattr("ovd.build.batches.repeat_factors", factors)
    few = world_index.take(np.arange(4))
    epoch = batches(few, steps=3, batch_size=4, repeat_threshold=0.25)
    assert thresholds == [0.25]
    drawn = Counter(number for batch in epoch for number in batch.image_ids)
    assert [drawn[number] for number in few.image_ids.tolist()] == [1, 1, 9, 1]


def test_each_set_is_of_the_split_that_is_named(tmp_path):
    for part in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / part).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / part / f"{part}.png")
        (tmp_path / "labels" / part / f"{part}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    path = tmp_path / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [cup]\n")

    def sets(**splits) -> list[str]:
        source = {"kind": "files", "format": "yolo", "train_annotations": str(path), "val_annotations": str(path)}
        values = {"output": "x", "train": {"steps": 1}, "data": {"source": source | splits, "classes": "all"}}
        config = parse_config(values, TrainConfig, "test")
        trained, validated = load_training_index(config, DataReport()), load_validation_index(config, DataReport())
        assert validated is not None
        return [trained.record(0).path.stem, validated.record(0).path.stem]

    assert sets() == ["train", "val"]
    assert sets(train_split="val", val_split="train") == ["val", "train"]


@pytest.mark.parametrize(
    ("batch_size", "share", "images", "pairs"),
    [(16, None, 16, 0), (16, 0.25, 12, 4), (6, 0.6, 2, 4), (8, 0.01, 7, 1), (4, 0.99, 1, 3)],
)
def test_samples_are_counted_by_their_share_of_each_batch_over_all_stages(tmp_path, batch_size, share, images, pairs):
    data = {} if share is None else {"pairs": {"labels": "labels", "share": share}}
    values = {"output": str(tmp_path), "data": data, "train": {"steps": 9, "batch_size": batch_size}}
    config = parse_config(values, TrainConfig, "test")
    assert samples_per_step(config) == SampleCounts(images, pairs)
    after = Checkpoint(tmp_path, 5, config.model_dump(mode="json"), Notes(first_samples=SampleCounts(100, 1000)))
    assert samples_drawn(after) == SampleCounts(100 + 5 * images, 1000 + 5 * pairs)


@pytest.mark.parametrize(("mosaic", "tile"), [(0, 1.0), (0.9, 1.0), (1, 0.5)])
def test_objects_are_too_small_if_they_are_in_all_samples(tmp_path, mosaic, tile):
    data = {"size": 64, "scale": [0.5, 1.5], "mosaic": mosaic}
    config = parse_config({"output": str(tmp_path), "data": data, "train": {"steps": 1}}, TrainConfig, "test")
    assert sample_sizes(config) == SampleSizes(64, 1.5, tile)


def test_mosaics_are_made_of_tiles_of_half_the_size(world_index):
    (single,), (mosaics,) = batches(world_index), batches(world_index, mosaic=1)
    assert single.image_ids == mosaics.image_ids  # mosaics do not change the order of images
    assert (mosaics.sizes == 96).all()
    assert sum(len(targets.boxes) for targets in mosaics.targets) > sum(
        len(targets.boxes) for targets in single.targets
    )
    for image, whole, targets in zip(mosaics.images, single.images, mosaics.targets, strict=True):
        own = F.avg_pool2d(whole.float(), 2)  # the first of the four tiles, at half the size
        assert (image[:, :48, :48].float() - own).abs().mean() < 6
        boxes = targets.boxes
        assert ((boxes[:, 2:] - boxes[:, :2]) <= 48).all()
        assert (boxes[:, :2] // 48 == (boxes[:, 2:] - 1e-3) // 48).all()  # each box is inside one tile


def test_two_classes_of_one_name_stop_a_training_and_not_an_evaluation(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 20, "height": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": number, "name": name} for number, name in ((3, "cat"), (7, "dog"), (9, "cat"))],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    source = {"kind": "files", "format": "coco", "train_annotations": str(path), "train_images": str(tmp_path)}
    values = {"output": "run", "train": {"steps": 1}, "data": {"source": source, "classes": "all"}}
    report = DataReport()
    with pytest.raises(DataError, match=r"train\.json: categories 3 and 9 are both called 'cat': rename") as caught:
        load_training_index(parse_config(values, TrainConfig, "test"), report)
    assert caught.value.code == "F2"
    assert "categories 3 and 9 are both called 'cat', which training refuses" in str(report.first_records())
    assert len(load_evaluation_index(path, tmp_path, "coco", report=DataReport()).categories) == 3


@pytest.mark.parametrize(
    ("annotations", "categories", "message"),
    [
        ([], [], "has no categories"),
        ([], ["cup"], r"none of 1 image has a box to train on \(0 are crowds"),
        ([{"iscrowd": 1, "bbox": [1, 1, 9, 9]}], ["cup"], r"has a box to train on \(1 are crowds"),
        ([{"bbox": [1, 1, 0.5, 9]}], ["cup"], r"0 are crowds, which are not trained on; 1 were left out as faulty"),
    ],
)
def test_a_training_set_with_nothing_to_learn_stops(tmp_path, annotations, categories, message):
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 20, "height": 20}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, **row} for n, row in enumerate(annotations)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(categories, start=1)],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    source = {"kind": "files", "format": "coco", "train_annotations": str(path), "train_images": str(tmp_path)}
    values = {"output": "run", "train": {"steps": 1}, "data": {"source": source, "classes": "all"}}
    with pytest.raises(DataError, match=message) as caught:
        load_training_index(parse_config(values, TrainConfig, "test"), DataReport())
    assert caught.value.code == "F1"


@pytest.mark.parametrize(("image_size", "stride", "side"), [(224, 32, 224), (384, 14, 378), ((336, 336), 14, 336)])
def test_crops_have_clips_own_side_as_far_as_the_backbone_takes_it(image_size, stride, side):
    """Crops have CLIP's own side, rounded to a multiple of the stride: SigLIP's SO400M at 384 px has patches of 14
    px."""
    options = CropOptions(views=((1.0, 1.0), (1.3, 1.0)))
    views = views_of(options, SimpleNamespace(image_size=image_size), stride, section="naming")
    assert views == [View(side, 1.0), View(side, 1.3)]
    asked = CropOptions(crop=384, views=((1.0, 1.0),))
    if 384 % stride:
        with pytest.raises(ValueError, match=r"naming\.crop and .* crops of 384 px"):
            views_of(asked, SimpleNamespace(image_size=image_size), stride, section="naming")
