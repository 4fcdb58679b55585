"""The second look: crops against CLIP's own encoder, and all ways of detecting that use it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_images import encode
from random_images import coarse_noise
from small_trained import small_trained

from ovd.build.crops import build_second_look
from ovd.build.text import evaluation_text, queries_of_index
from ovd.build.trained import TrainedDetector, build_own_inference
from ovd.config.labeling import LabelOptions
from ovd.config.training import TrainConfig
from ovd.data.annotations import load_annotations
from ovd.data.loading.loader import LoaderOptions
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataReport
from ovd.inference import ImageBatch, Inference
from ovd.jobs.evaluate import detect_all
from ovd.jobs.label_pairs import LabelRequest, pseudo_label_run
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.crop_encoder import View
from ovd.model.detection_options import DetectionOptions, SecondLookOptions
from ovd.model.query_texts import QueryTexts
from ovd.predictor import Predictor
from ovd.selftrain.teacher import OvdTeacher, TextVariants
from ovd.structures import Detections

NAMES = ["anchor", "umbrella", "cat face"]
SIZES = [(60, 90), (80, 50)]


@pytest.fixture(scope="module")
def trained(tiny_clip) -> TrainedDetector:
    """A detector whose backbone has drifted from CLIP's."""
    settings = {
        "max_detections": 30,
        "batch_size": 3,
        "competition": 40.0,
        "second_look": {"crops": 5, "weight": 0.4, "crop": 64},
    }
    data, train = {"size": 96, "workers": 0}, {"device": "cpu"}
    made = small_trained(tiny_clip, "anchor", output="runs/drifted", data=data, train=train, eval=settings)
    for parameter in made.detector.backbone.parameters():
        parameter.data *= 1 + 0.05 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def inference(trained) -> Inference:
    return build_own_inference(trained)


def assert_close(found: Detections, expected: Detections) -> None:
    assert len(found.scores) == len(expected.scores) > 0
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-2, rtol=0)
    assert torch.equal(found.classes, expected.classes)


def test_it_is_clip_before_training_and_is_never_trained(trained, tiny_clip):
    random_state = torch.get_rng_state()
    look = build_second_look(trained.config, trained.config.eval.second_look)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert look is not None
    assert look.views == (View(64, 1.1),)
    for parameter, original in zip(
        look.backbone.parameters(), backbone_from_visual(tiny_clip.model.visual).parameters(), strict=True
    ):
        assert torch.equal(parameter, original)
        assert not parameter.requires_grad
    assert all(parameter.requires_grad for parameter in trained.detector.backbone.parameters())
    native = build_second_look(trained.config, SecondLookOptions())
    assert native is not None
    assert native.views == (View(64, 1.1),)
    assert build_second_look(trained.config, None) is None


def test_random_clip_weights_are_those_of_the_training(trained):
    values = trained.config.model_dump() | {"clip": {"name": "RN50", "weights": "random"}}
    config = TrainConfig.model_validate(values)
    looks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        looks.append(build_second_look(config, SecondLookOptions()))
    one, other = (next(look.backbone.parameters()) for look in looks if look is not None)
    assert torch.equal(one, other)


def test_options_and_encoder_go_together(trained):
    options = DetectionOptions(second_look=SecondLookOptions())
    with pytest.raises(ValueError, match="go together"):
        Inference(trained.detector, size=96, options=options, low_precision=False)


def test_an_image_is_seen_in_a_batch_as_alone(trained, inference):
    """An image gives the same detections in a batch as alone; both images have the same odd shape, so that padding is
    the same."""
    queries = QueryTexts(evaluation_text(trained.config, trained.clip, NAMES))
    pictures = [coarse_noise(seed, 60, 96) for seed in (0, 1)]
    images = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    for row, picture in enumerate(pictures):
        images[row, :, :60] = torch.from_numpy(picture).permute(2, 0, 1)
    sizes = torch.tensor([[60, 96]] * 2)
    together = inference.detect(queries, ImageBatch(images, sizes, sizes))
    without = build_own_inference(trained, options=inference.options.model_copy(update={"second_look": None}))
    for picture, found in zip(pictures, together, strict=True):
        assert_close(found, inference.image(queries, picture))
        plain = without.image(queries, picture)
        assert not (len(plain.scores) == len(found.scores) and torch.allclose(plain.scores, found.scores))


def test_the_predictor_and_the_teacher_look_again(trained, inference):
    picture = coarse_noise(3, 70, 90)
    queries = QueryTexts(evaluation_text(trained.config, trained.clip, NAMES))
    expected = inference.image(queries, picture)
    assert_close(Predictor(trained)(picture, NAMES), expected)
    teacher = OvdTeacher(inference, TextVariants(trained.clip, ("{}",)), run="drifted")
    asked = [tuple(NAMES), ("anchor",), ()]
    several, one, none = teacher.detect([picture] * 3, asked)
    expected = inference.image(QueryTexts(evaluation_text_of(trained, NAMES)), picture)
    torch.testing.assert_close(torch.from_numpy(several.scores), expected.scores, atol=1e-5, rtol=1e-4)
    assert several.texts.tolist() == expected.classes.tolist()
    assert len(one.scores) > 0
    assert len(none.scores) == 0
    assert "second_look=SecondLookOptions(crop=64, views=((1.1, 1.0),), crops=5" in teacher.name
    assert "in (View(side_px=64, context=1.1),)" in teacher.name


def evaluation_text_of(trained: TrainedDetector, names: list[str]) -> torch.Tensor:
    texts = TextVariants(trained.clip, ("{}",))
    texts.load(names)
    return texts.means(names)


def test_an_evaluation_is_what_inference_finds(trained, inference, miniature_world):
    annotations = miniature_world / "annotations" / "lvis_val.json"
    index = load_annotations(
        annotations, miniature_world / "images", format="lvis", report=DataReport(), with_truth=True
    ).take(np.arange(4))
    queries = queries_of_index(trained, index)
    results = detect_all(trained, index, queries).results()
    found = list(inference.dataset(queries, index, LoaderOptions(3, workers=0)))
    assert [image_id for image_id, _ in found] == index.image_ids.tolist()
    scores = torch.cat([item.scores for _, item in found]).double().numpy()
    assert len(scores) > 40
    np.testing.assert_array_equal(np.sort(results.scores), np.sort(scores))


def test_the_ledger_of_pseudo_labels_says_that_it_was_used(trained, tmp_path: Path):
    pair = Pair("00000", encode(coarse_noise(0, 64, 64), "JPEG"), "an anchor and an umbrella", {})
    write_pair_shards(tmp_path / "pairs", [pair], pairs_per_shard=1)
    options = LabelOptions(queries="nouns", score_threshold=0.0)
    counts = pseudo_label_run(trained, LabelRequest(tmp_path / "pairs", tmp_path / "out", options))
    assert counts.boxes > 0
    teacher = json.loads((tmp_path / "out" / "00000.json").read_text())["settings"]["teacher"]
    assert "second_look=SecondLookOptions(crop=64, views=((1.1, 1.0),), crops=5" in teacher
