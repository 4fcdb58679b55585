"""Competition, one name per place and the second look against plain loops over points and classes."""

import math
from collections.abc import Callable

import pytest
import torch
from plain_iou import iou
from pydantic import ValidationError
from test_postprocess import BIAS, SCALE, assert_equal, make_predictions, make_text
from torch import Tensor

from ovd.config.training import TrainConfig
from ovd.config_files import parse_config
from ovd.model.detection_options import DetectionOptions
from ovd.model.pair_scores import ScoreEnsemble
from ovd.model.postprocess import SECOND_LOOK_NMS_IOU, postprocess
from ovd.model.similarity import TextClassifier, unit_embeddings
from ovd.structures import Detections, Predictions

INPUT_SIZES, ORIGINAL_SIZES = [(96, 160), (128, 100)], [(300, 480), (64, 51)]
Box = list[float]


def embedding_of(box: Box, dim: int = 8) -> list[float]:
    """Make a stand-in for CLIP's embedding of a box's crop: a unit vector that depends on the box alone."""
    vector = [math.sin(0.03 * (k + 1) * box[0] + 0.02 * box[1] + 0.05 * k * box[2] + box[3] / 40) for k in range(dim)]
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


class Looker:
    """A `Look` that records the boxes it is called with."""

    def __init__(self) -> None:
        self.asked: list[list[Box]] = []

    def __call__(self, boxes: list[Tensor]) -> list[Tensor]:
        self.asked += [of_image.tolist() for of_image in boxes]
        return [torch.tensor([embedding_of(box) for box in of_image.tolist()]).reshape(-1, 8) for of_image in boxes]


def detect(
    predictions: Predictions,
    text: Tensor,
    options: DetectionOptions,
    *,
    images: slice = slice(None),
    ensemble: ScoreEnsemble | None = None,
    look: Callable | None = None,
    penalty: Tensor | None = None,
) -> tuple[Detections, ...]:
    num_images = len(predictions.embeddings)
    return postprocess(
        predictions.of_images(images),
        [TextClassifier(text, torch.arange(len(text)), torch.tensor(SCALE), torch.tensor(BIAS), penalty)],
        input_sizes=torch.tensor(INPUT_SIZES[:num_images])[images],
        original_sizes=torch.tensor(ORIGINAL_SIZES[:num_images])[images],
        options=options,
        ensemble=ensemble,
        embed_crops=look,
    )


def suppress(ranked: list, threshold: float, box_of: Callable, rivals: Callable) -> list:
    """Apply greedy non-maximum suppression among rivals, best first."""
    kept: list = []
    for item in ranked:
        if not any(rivals(item, better) and iou(box_of(item), box_of(better)) > threshold for better in kept):
            kept.append(item)
    return kept


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(values)) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def reference(
    predictions: Predictions,
    image: int,
    text: Tensor,
    options: DetectionOptions,
    ensemble: ScoreEnsemble | None = None,
    penalty: Tensor | None = None,
) -> list[tuple[Box, float, int]]:
    """Compute the detections of an image with all options, in double precision and plain numbers."""
    rows, embeddings = text.tolist(), predictions.embeddings[image].tolist()
    penalties = [0.0] * len(rows) if penalty is None else penalty.tolist()
    height, width = INPUT_SIZES[image]
    boxes: dict[int, Box] = {}
    for point, (x0, y0, x1, y1) in enumerate(predictions.boxes[image].tolist()):
        box = [min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height)]
        if box[2] > box[0] and box[3] > box[1]:
            boxes[point] = box

    def scores_of(point: int, cosines: list[float]) -> list[float]:
        quality = 1 / (1 + math.exp(-predictions.quality[image, point].item()))
        shares = softmax([options.competition * cosine for cosine in cosines])
        scores = []
        for c, cosine in enumerate(cosines):
            absolute = cosine + penalties[c] if options.competition else cosine
            probability = 1 / (1 + math.exp(-SCALE * absolute - BIAS))
            if ensemble is not None:
                assert predictions.dense is not None
                dense = predictions.dense[image, point].tolist()
                named = softmax([ensemble.clip_scale * dot(dense, row) for row in rows])[c]
                weight = ensemble.weights[c].item()
                probability = probability ** (1 - weight) * named**weight
            competed = shares[c] ** options.competition_power if options.competition else 1.0
            scores.append(math.sqrt(probability * quality) * competed)
        return scores

    cosines = {}
    for point in boxes:
        length = math.sqrt(dot(embeddings[point], embeddings[point]))
        cosines[point] = [dot(embeddings[point], row) / max(length, 1e-6) - penalties[c] for c, row in enumerate(rows)]
    scores = {point: scores_of(point, cosines[point]) for point in boxes}
    points = list(boxes)
    if options.second_look is not None and len(rows) > 1:
        ranked = sorted(points, key=lambda point: (-max(scores[point]), point))[: options.candidates]
        ranked = [point for point in ranked if max(scores[point]) > options.score_threshold]
        points = suppress(ranked, SECOND_LOOK_NMS_IOU, boxes.__getitem__, lambda *_: True)
        weight = options.second_look.weight
        for point in points[: options.second_look.crops]:
            crop = embedding_of(boxes[point])
            mixed = [
                (1 - weight) * cosines[point][c] + weight * (dot(crop, row) - penalties[c])
                for c, row in enumerate(rows)
            ]
            scores[point] = scores_of(point, [value + max(cosines[point]) - max(mixed) for value in mixed])
    pairs = [(scores[point][c], point, c) for point in points for c in range(len(rows))]
    if options.one_name_per_place is not None:
        pairs = [pair for pair in pairs if pair[2] == scores[pair[1]].index(max(scores[pair[1]]))]
    pairs = [pair for pair in pairs if pair[0] > options.score_threshold]
    pairs = sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[: options.candidates]
    if options.one_name_per_place is not None:
        pairs = suppress(pairs, options.one_name_per_place, lambda pair: boxes[pair[1]], lambda *_: True)
    pairs = suppress(pairs, options.nms_iou, lambda pair: boxes[pair[1]], lambda one, other: one[2] == other[2])
    x, y = ORIGINAL_SIZES[image][1] / width, ORIGINAL_SIZES[image][0] / height
    found = []
    for score, point, c in pairs[: options.max_detections]:
        box = boxes[point]
        found.append(([box[0] * x, box[1] * y, box[2] * x, box[3] * y], score, c))
    return found


def assert_same(found: Detections, expected: list[tuple[Box, float, int]]) -> None:
    """Check that detections are equal, except for the order of different classes whose scores float32 cannot tell
    apart."""
    assert (found.scores.diff() <= 0).all()
    rows = sorted(range(len(found.scores)), key=lambda row: (int(found.classes[row]), row))
    sorted_found = Detections(found.boxes[rows], found.scores[rows], found.classes[rows])
    assert_equal(sorted_found, sorted(expected, key=lambda item: (item[2], -item[1])))


LOOK: dict = {"crops": 12, "weight": 0.4}
OPTIONS: list[dict] = [
    {"competition": 9.0},
    {"competition": 40.0, "competition_power": 0.3, "candidates": 50},
    {"competition": 9.0, "candidates": 500, "max_detections": 20, "score_threshold": 0.01},
    {"competition": 9.0, "candidates": 1},
    {"one_name_per_place": 0.5},
    {"one_name_per_place": 0.8, "nms_iou": 0.3, "candidates": 40},
    {"one_name_per_place": 0.3, "competition": 9.0, "score_threshold": 0.2},
    {"second_look": LOOK},
    {"second_look": LOOK, "competition": 9.0, "candidates": 60},
    {"second_look": {"crops": 1000, "weight": 1.0}, "competition": 9.0, "score_threshold": 0.1},
    {"second_look": LOOK, "competition": 9.0, "one_name_per_place": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("num_classes", [1, 40])
def test_equals_plain_loops(num_classes: int, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovd.model.similarity.CHUNK_ELEMENTS", 1000)
    predictions, text = make_predictions(2, 100), make_text(num_classes)
    settings = DetectionOptions.model_validate(options)
    found = detect(predictions, text, settings, look=Looker())
    for image in range(2):
        expected = reference(predictions, image, text, settings)
        assert_same(found[image], expected)
        assert len(expected) > 0


@pytest.mark.parametrize(
    "options",
    [{}, {"competition": 9.0}, {"second_look": LOOK}, {"second_look": LOOK, "competition": 9.0}],
    ids=str,
)
def test_names_that_are_lowered_equal_plain_loops(options: dict) -> None:
    predictions, text = make_predictions(2, 100), make_text(6)
    penalty = torch.tensor([0.0, 0.3, 0.1, 0.0, 0.5, 0.2])
    settings = DetectionOptions.model_validate(options)
    found = detect(predictions, text, settings, look=Looker(), penalty=penalty)
    for image in range(2):
        assert_same(found[image], reference(predictions, image, text, settings, penalty=penalty))


def test_a_second_look_is_at_the_best_points_that_are_candidates() -> None:
    """The five best points lie at one place, so only one box is left of them, and the others are no candidates."""
    predictions, text = make_predictions(1, 20), make_text(2)
    corners = torch.arange(20.0).clamp(min=4)[:, None].expand(20, 2) * 3
    ranked = Predictions(
        predictions.embeddings, torch.cat([corners, corners + 30], dim=1)[None], 20 - 9 * torch.arange(20.0)[None]
    )
    settings = DetectionOptions.model_validate({"second_look": LOOK, "candidates": 5, "score_threshold": 0.0})
    look = Looker()
    (found,) = detect(ranked, text, settings, look=look)
    assert look.asked == [[[12.0, 12.0, 42.0, 42.0]]]
    assert_same(found, reference(ranked, 0, text, settings))


@pytest.mark.parametrize("second_look", [None, LOOK])
def test_the_ensemble_goes_with_competition_and_second_look(second_look: dict | None) -> None:
    predictions, text = make_predictions(2, 60), make_text(6)
    clip = unit_embeddings(torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(5)))
    predictions = Predictions(predictions.embeddings, predictions.boxes, predictions.quality, clip)
    ensemble = ScoreEnsemble(torch.tensor([0.0, 1.0, 0.35, 0.35, 0.65, 0.65]), clip_scale=4.0)
    settings = DetectionOptions.model_validate({"competition": 9.0, "second_look": second_look, "candidates": 100})
    found = detect(predictions, text, settings, ensemble=ensemble, look=Looker())
    for image in range(2):
        assert_same(found[image], reference(predictions, image, text, settings, ensemble))


@pytest.mark.parametrize("options", [{"competition": 40.0}, {"competition": 40.0, "second_look": LOOK}], ids=str)
def test_the_only_class_keeps_its_scores(options: dict) -> None:
    predictions, text = make_predictions(2, 100), make_text(1)
    look = Looker()
    without = detect(predictions, text, DetectionOptions())
    found = detect(predictions, text, DetectionOptions.model_validate(options), look=look)
    for one, other in zip(found, without, strict=True):
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.boxes, other.boxes)
    assert look.asked == []


@pytest.mark.parametrize("chunk_elements", [1, 7_000, 10**9])
def test_chunks_do_not_matter_with_thousands_of_names(chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not depend on how many points are scored at a time, since the softmax needs all classes of a point but
    no other point."""
    monkeypatch.setattr("ovd.model.similarity.CHUNK_ELEMENTS", chunk_elements)
    num_classes, options = 3000, DetectionOptions(competition=60.0, candidates=30, nms_iou=1.0)
    predictions, text = make_predictions(1, 80), make_text(num_classes)
    (found,) = detect(predictions, text, options)
    cosines = torch.cosine_similarity(predictions.embeddings[0, :, None].double(), text.double(), dim=-1)
    probability = torch.sigmoid(SCALE * cosines + BIAS) * torch.sigmoid(predictions.quality[0, :, None].double())
    scores = probability.sqrt() * (60 * cosines).softmax(dim=1).sqrt()
    corners = predictions.boxes[0].clamp(min=0)
    limit = torch.tensor([160.0, 96.0, 160.0, 96.0])
    corners = torch.minimum(corners, limit)
    scores[(corners[:, 2:] <= corners[:, :2]).any(dim=1)] = 0
    best = scores.flatten().topk(30)
    assert found.classes.tolist() == (best.indices % num_classes).tolist()
    torch.testing.assert_close(found.scores, best.values.float())


@pytest.mark.parametrize("options", OPTIONS[-1:] + OPTIONS[:1], ids=str)
def test_an_image_alone_equals_itself_in_a_batch(options: dict) -> None:
    predictions, text = make_predictions(2, 100), make_text(5)
    settings = DetectionOptions.model_validate(options)
    together = detect(predictions, text, settings, look=Looker())
    for image in range(2):
        (alone,) = detect(predictions, text, settings, images=slice(image, image + 1), look=Looker())
        for name in ("boxes", "scores", "classes"):
            assert torch.equal(getattr(alone, name), getattr(together[image], name))


def test_ties_are_in_order_of_point_and_class() -> None:
    predictions, text = make_predictions(1, 40), make_text(6)
    flat = Predictions(torch.zeros(1, 40, 8), predictions.boxes, torch.zeros(1, 40))  # all scores are equal
    competing = DetectionOptions(competition=9.0, candidates=17)
    assert_equal(detect(flat, text, competing)[0], reference(flat, 0, text, competing))
    one_name = DetectionOptions(one_name_per_place=0.5)
    (found,) = detect(flat, text, one_name)
    assert found.classes.unique().tolist() == [0]
    assert_equal(found, reference(flat, 0, text, one_name))
    looked = DetectionOptions.model_validate({"second_look": {"crops": 3}})
    assert_equal(detect(flat, text, looked, look=Looker())[0], reference(flat, 0, text, looked))


def test_no_two_boxes_at_one_place_whatever_their_names() -> None:
    predictions, text = make_predictions(1, 150), make_text(40)
    (found,) = detect(predictions, text, DetectionOptions(one_name_per_place=0.4))
    x, y = 480 / 160, 300 / 96
    boxes = [[x0 / x, y0 / y, x1 / x, y1 / y] for x0, y0, x1, y1 in found.boxes.tolist()]
    overlaps = [iou(one, other) for row, one in enumerate(boxes) for other in boxes[:row]]
    assert max(overlaps) <= 0.4 + 1e-5
    (without,) = detect(predictions, text, DetectionOptions())
    assert 1 < len(found.scores) < len(without.scores)
    assert len(found.classes.unique()) > 1


def test_the_best_boxes_are_looked_at_and_no_more() -> None:
    predictions, text = make_predictions(2, 100), make_text(7)
    asked: dict[int, list[list[Box]]] = {}
    for crops in (3, 1000):
        look = Looker()
        detect(predictions, text, DetectionOptions.model_validate({"second_look": {"crops": crops}}), look=look)
        asked[crops] = look.asked
    assert [len(boxes) for boxes in asked[3]] == [3, 3]
    for few, many in zip(asked[3], asked[1000], strict=True):
        assert all(box in many for box in few)
        assert len(many) > 10
        assert max(iou(one, other) for row, one in enumerate(many) for other in many[:row]) <= SECOND_LOOK_NMS_IOU
    (plain,) = detect(predictions, text, DetectionOptions(), images=slice(1))
    best = (plain.boxes[0] / torch.tensor([3.0, 3.125, 3.0, 3.125])).tolist()
    assert any(box == pytest.approx(best, abs=1e-3) for box in asked[3][0])


@pytest.mark.parametrize("why", ["no points", "all outside", "all below the threshold"])
def test_no_survivors(why: str) -> None:
    predictions = make_predictions(1, 0 if why == "no points" else 30)
    if why == "all outside":
        predictions = Predictions(predictions.embeddings, predictions.boxes + 1000, predictions.quality)
    values = {**OPTIONS[-1], "score_threshold": 0.999999 if why == "all below the threshold" else 0.0}
    look = Looker()
    (found,) = detect(predictions, make_text(3), DetectionOptions.model_validate(values), look=look)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.classes.shape == (0,)
    assert look.asked == [[]]


def test_an_image_without_boxes_beside_one_with_boxes() -> None:
    predictions, text = make_predictions(2, 50), make_text(4)
    predictions.boxes[0] += 1000
    settings = DetectionOptions.model_validate(OPTIONS[-1])
    nothing, found = detect(predictions, text, settings, look=Looker())
    assert len(nothing.scores) == 0
    assert_same(found, reference(predictions, 1, text, settings))


def test_nan_is_an_error() -> None:
    predictions = make_predictions(1, 20)
    predictions.boxes[0, -1] = torch.tensor([10.0, 10.0, 20.0, 30.0])
    predictions.embeddings[0, -1] = torch.nan
    for options in OPTIONS[:1] + OPTIONS[-1:]:
        with pytest.raises(ValueError, match="NaN"):
            detect(predictions, make_text(3), DetectionOptions.model_validate(options), look=Looker())


def test_keys_of_a_config() -> None:
    values = {"output": "x", "train": {"steps": 1}, "eval": {"competition": 40, "second_look": {}}}
    options = parse_config(values, TrainConfig, "test").eval
    assert options.second_look is not None
    assert (options.competition, options.competition_power, options.second_look.weight) == (40, 0.5, 0.4)
    for faulty in ({"one_name_per_place": 1.0}, {"competition": -1}, {"second_look": {"weight": 0}}):
        with pytest.raises(ValidationError, match=r"should be (greater|less) than"):
            DetectionOptions.model_validate(faulty)


def test_the_repr_is_that_of_before_where_the_options_are_off() -> None:
    """Options that are off do not change the repr, which ledgers of pseudo-labels compare."""
    assert repr(DetectionOptions(score_threshold=0.05)) == (
        "DetectionOptions(score_threshold=0.05, nms_iou=0.6, max_detections=1000, candidates=2000)"
    )
    shown = repr(DetectionOptions.model_validate({"competition": 40, "second_look": LOOK}))
    assert shown.endswith(
        "candidates=2000, competition=40.0, "
        "second_look=SecondLookOptions(crop=None, views=((1.1, 1.0),), crops=12, weight=0.4))"
    )
