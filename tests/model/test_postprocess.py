"""Post-processing: the kept pairs of point and class are those of a full sort of all scores."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import nms

from ovd.model import similarity
from ovd.model.detection_options import DetectionOptions
from ovd.model.pair_scores import PairScores, PointPredictions, ScoreEnsemble
from ovd.model.postprocess import postprocess
from ovd.model.similarity import TextClassifier
from ovd.structures import Detections, Predictions

SCALE, BIAS = 12.0, -2.0


def make_predictions(batch: int, num_points: int, dim: int = 8, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(batch, num_points, 2, generator=generator) * 220 - 40
    sides = torch.rand(batch, num_points, 2, generator=generator) * 90
    return Predictions(
        embeddings=torch.randn(batch, num_points, dim, generator=generator),
        boxes=torch.cat([corners, corners + sides], dim=2),
        quality=torch.randn(batch, num_points, generator=generator),
    )


def make_text(num_classes: int, dim: int = 8) -> torch.Tensor:
    return similarity.unit_embeddings(torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(7)))


def detections_of(
    predictions: Predictions,
    text: torch.Tensor,
    input_sizes: torch.Tensor,
    original_sizes: torch.Tensor,
    ensemble: ScoreEnsemble | None = None,
    **options,
) -> tuple[Detections, ...]:
    classifier = similarity.TextClassifier(text, torch.arange(len(text)), torch.tensor(SCALE), torch.tensor(BIAS))
    return postprocess(
        predictions,
        [classifier],
        input_sizes=input_sizes,
        original_sizes=original_sizes,
        options=DetectionOptions(**options),
        ensemble=ensemble,
    )


def naive(
    predictions: Predictions,
    image: int,
    text: torch.Tensor,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    *,
    score_threshold: float = 0.0,
    nms_iou: float = 0.6,
    max_detections: int = 1000,
    candidates: int = 2000,
) -> list[tuple[list[float], float, int]]:
    """Post-process with one full sort over points x classes, NMS one class at a time, and boxes in plain numbers."""
    cosines = torch.cosine_similarity(predictions.embeddings[image, :, None], text, dim=-1)
    scores = torch.sqrt(torch.sigmoid(SCALE * cosines + BIAS) * torch.sigmoid(predictions.quality[image, :, None]))
    height, width = input_size
    pairs = []
    for point, (x0, y0, x1, y1) in enumerate(predictions.boxes[image].tolist()):
        box = [min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height)]
        if box[2] > box[0] and box[3] > box[1]:
            pairs += [(score, point, c, box) for c, score in enumerate(scores[point].tolist())]
    pairs = sorted((p for p in pairs if p[0] > score_threshold), key=lambda p: (-p[0], p[1], p[2]))[:candidates]
    kept = []
    for c in range(len(text)):
        of_class = [p for p in pairs if p[2] == c]
        if of_class:
            boxes, class_scores = torch.tensor([p[3] for p in of_class]), torch.tensor([p[0] for p in of_class])
            kept += [of_class[i] for i in nms(boxes, class_scores, nms_iou).tolist()]
    kept = sorted(kept, key=lambda p: (-p[0], p[1], p[2]))[:max_detections]
    x, y = original_size[1] / width, original_size[0] / height
    return [([box[0] * x, box[1] * y, box[2] * x, box[3] * y], score, c) for score, _, c, box in kept]


def assert_equal(detections: Detections, expected: list[tuple[list[float], float, int]]) -> None:
    assert detections.classes.tolist() == [c for _, _, c in expected]
    torch.testing.assert_close(detections.scores, torch.tensor([score for _, score, _ in expected]))
    boxes = torch.tensor([box for box, _, _ in expected]).reshape(-1, 4)
    torch.testing.assert_close(detections.boxes, boxes, atol=1e-3, rtol=1e-5)


INPUT_SIZES, ORIGINAL_SIZES = [(96, 160), (128, 100)], [(300, 480), (64, 51)]


@pytest.mark.parametrize("num_classes", [1, 40])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"candidates": 3000},
        {"candidates": 50},
        {"candidates": 500, "max_detections": 20},
        {"score_threshold": 0.5},
        {"candidates": 90, "nms_iou": 0.1, "score_threshold": 0.3},
        {"candidates": 1},
    ],
    ids=str,
)
def test_equals_a_full_sort(num_classes: int, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovd.model.similarity.CHUNK_ELEMENTS", 1000)
    predictions, text = make_predictions(2, 150), make_text(num_classes)
    detections = detections_of(predictions, text, torch.tensor(INPUT_SIZES), torch.tensor(ORIGINAL_SIZES), **options)
    for image in range(2):
        expected = naive(predictions, image, text, INPUT_SIZES[image], ORIGINAL_SIZES[image], **options)
        assert_equal(detections[image], expected)
        assert len(expected) > 0


def test_boxes_of_low_precision_are_clipped_and_rescaled_in_float32() -> None:
    predictions, text = make_predictions(2, 40), make_text(5)
    low = replace(predictions, boxes=predictions.boxes.bfloat16())
    rounded = replace(predictions, boxes=low.boxes.float())
    found, expected = (
        detections_of(each, text, torch.tensor(INPUT_SIZES), torch.tensor(ORIGINAL_SIZES)) for each in (low, rounded)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.boxes.dtype == torch.float32
        assert torch.equal(one.boxes, other.boxes)
        assert len(one.boxes) > 0


def test_ties_are_in_order_of_point_and_class() -> None:
    predictions, text = make_predictions(1, 40), make_text(6)
    flat = Predictions(torch.zeros(1, 40, 8), predictions.boxes, torch.zeros(1, 40))  # all scores are equal
    sizes = torch.tensor(INPUT_SIZES[:1])
    (detections,) = detections_of(flat, text, sizes, sizes, candidates=17)
    assert_equal(detections, naive(flat, 0, text, INPUT_SIZES[0], INPUT_SIZES[0], candidates=17))


def test_tied_pairs_are_not_in_order_of_their_points_scores() -> None:
    embeddings = torch.tensor([[[0.6, 0.0, 0.8], [1.0, 0.0, 0.0]]])
    predictions = Predictions(embeddings, torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 10]]]), torch.zeros(1, 2))
    sizes = torch.tensor([[20, 40]])
    (detections,) = detections_of(predictions, torch.eye(3)[:2], sizes, sizes)
    assert detections.classes.tolist() == [0, 0, 1, 1]
    assert detections.boxes[:, 0].tolist() == [20, 0, 0, 20]


@pytest.mark.parametrize(
    "options", [{}, {"one_name_per_place": 0.4}, {"max_detections": 5}, {"competition": 5.0}], ids=str
)
def test_images_that_are_processed_together_have_what_they_have_alone(options: dict, monkeypatch) -> None:
    predictions, text = make_predictions(5, 60), make_text(7)
    sizes = torch.tensor([[100, 150], [120, 90], [150, 150], [60, 60], [150, 20]])
    original = 3 * sizes.flip(0)
    alone = detections_of(predictions, text, sizes, original, **options)
    monkeypatch.setattr("ovd.model.postprocess._images_at_once", lambda images, scoring: 3)
    together = detections_of(predictions, text, sizes, original, **options)
    for found, expected in zip(together, alone, strict=True):
        assert len(found) > 0
        torch.testing.assert_close(found.boxes, expected.boxes)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.classes, expected.classes)


def test_an_image_alone_equals_itself_in_a_batch() -> None:
    predictions, text = make_predictions(2, 100), make_text(5)
    sizes, original = torch.tensor(INPUT_SIZES), torch.tensor(ORIGINAL_SIZES)
    together = detections_of(predictions, text, sizes, original)
    for i in range(2):
        one = Predictions(
            predictions.embeddings[i : i + 1], predictions.boxes[i : i + 1], predictions.quality[i : i + 1]
        )
        (alone,) = detections_of(one, text, sizes[i : i + 1], original[i : i + 1])
        assert torch.equal(alone.boxes, together[i].boxes)
        assert torch.equal(alone.scores, together[i].scores)
        assert torch.equal(alone.classes, together[i].classes)


@pytest.mark.parametrize("why", ["no points", "all outside", "all below the threshold"])
def test_no_survivors(why: str) -> None:
    predictions = make_predictions(1, 0 if why == "no points" else 30)
    if why == "all outside":
        predictions = Predictions(predictions.embeddings, predictions.boxes + 1000, predictions.quality)
    sizes = torch.tensor(INPUT_SIZES[:1])
    threshold = 0.999999 if why == "all below the threshold" else 0.0
    (detections,) = detections_of(predictions, make_text(3), sizes, sizes, score_threshold=threshold)
    assert detections.boxes.shape == (0, 4)
    assert detections.scores.shape == detections.classes.shape == (0,)


def test_many_classes_do_not_blur_the_boxes() -> None:
    """Many classes do not blur the boxes: shifting boxes by 300 classes x 4,000 px would round float32 to an eighth of
    a pixel, and this IoU to 0.6."""
    boxes = [
        [0.07, 0.0, 100.07, 10.0],
        [25.12, 0.0, 125.12, 10.0],
        [3000.0, 0.0, 4000.0, 10.0],
    ]  # the IoU of the first two is 0.5994
    predictions = Predictions(torch.zeros(1, 3, 8), torch.tensor([boxes]), torch.zeros(1, 3))
    sizes = torch.tensor([[10, 4000]])
    (detections,) = detections_of(predictions, make_text(300), sizes, sizes, nms_iou=0.5998)
    assert len(detections.scores) == 900


@pytest.mark.parametrize("field", ["embeddings", "boxes", "quality"])
def test_nan_is_an_error(field: str) -> None:
    predictions = make_predictions(1, 20)
    # The last point's box is inside the image, so that its embedding and quality are used.
    predictions.boxes[0, -1] = torch.tensor([10.0, 10.0, 20.0, 30.0])
    getattr(predictions, field)[0, -1] = torch.nan
    sizes = torch.tensor(INPUT_SIZES[:1])
    with pytest.raises(ValueError, match="NaN"):
        detections_of(predictions, make_text(3), sizes, sizes)


@pytest.mark.parametrize("candidates", [15, 3000])
def test_score_ensemble_is_the_weighted_geometric_mean(candidates):
    """The score ensemble is the weighted geometric mean; one box per point, far apart, lets every pair of point and
    class survive."""
    num_points, text = 20, make_text(6)
    generator = torch.Generator().manual_seed(3)
    corners = torch.stack([torch.arange(num_points) * 10.0, torch.zeros(num_points)], dim=1)
    predictions = Predictions(
        embeddings=torch.randn(1, num_points, 8, generator=generator),
        boxes=torch.cat([corners, corners + 9], dim=1)[None],
        quality=torch.randn(1, num_points, generator=generator),
        dense=similarity.unit_embeddings(torch.randn(1, num_points, 8, generator=generator)),
    )
    assert predictions.dense is not None
    weights = torch.tensor([0.0, 1.0, 0.35, 0.35, 0.65, 0.65])
    sizes, ensemble = torch.tensor([[10, 200]]), ScoreEnsemble(weights, clip_scale=4.0)
    (found,) = detections_of(predictions, text, sizes, sizes, ensemble, candidates=candidates)
    expected = []
    for point in range(num_points):
        cosines = torch.cosine_similarity(predictions.embeddings[0, point], text, dim=1)
        named = torch.softmax(4.0 * (text @ predictions.dense[0, point]), dim=0)
        for row in range(6):
            detected = torch.sigmoid(SCALE * cosines[row] + BIAS)
            probability = detected ** (1 - weights[row]) * named[row] ** weights[row]
            quality = torch.sigmoid(predictions.quality[0, point])
            expected.append(((probability * quality).sqrt().item(), point, row))
    expected = sorted(expected, reverse=True)[:candidates]
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-5)
    assert [
        (round(box[0] / 10), row) for box, row in zip(found.boxes.tolist(), found.classes.tolist(), strict=True)
    ] == [(point, row) for _, point, row in expected]


def test_the_score_ensemble_is_exact_where_probabilities_are_below_those_of_float32() -> None:
    """The score ensemble is exact even if float32 cannot represent the probabilities: one point is far from the second
    name, which CLIP is sure of, and the reference takes logarithms in plain numbers."""
    embedding, dense, quality = torch.tensor([[1.0, -0.25]]), torch.tensor([[0.6, 0.8]]), -30.0
    points = PointPredictions(embedding, torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([quality]), dense)
    classifier = TextClassifier(torch.eye(2), torch.arange(2), torch.tensor(200.0), torch.tensor(-60.0))
    for weight in (0.0, 0.3, 0.65, 1.0):
        ensemble = ScoreEnsemble(torch.full((2,), weight), clip_scale=100.0)
        scores = PairScores(points, [classifier], DetectionOptions(), ensemble).all_scores()[0].tolist()
        length = math.hypot(1.0, 0.25)
        for name, (cosine, of_clip) in enumerate(((1 / length, 0.6), (-0.25 / length, 0.8))):
            detected = -math.log1p(math.exp(60 - 200 * cosine))
            named = 100 * of_clip - math.log(math.exp(60) + math.exp(80))
            log_score = ((1 - weight) * detected + weight * named - math.log1p(math.exp(-quality))) / 2
            assert scores[name] == pytest.approx(math.exp(log_score), rel=1e-4)
            assert scores[name] > 0


def test_with_competition_a_lowered_name_is_lowered_in_the_choice_alone() -> None:
    """With competition, a lowered name is lowered only in the choice of names; the reference is the formula in float64
    for one point and two names."""
    embedding, text = torch.tensor([[1.0, 0.2]]), torch.eye(2)
    lowered = torch.tensor([0.1, 0.02])
    classifier = TextClassifier(text, torch.arange(2), torch.tensor(9.0), torch.tensor(-4.0), lowered)
    predictions = Predictions(embedding[None], torch.tensor([[[0.0, 0, 8, 8]]]), torch.zeros(1, 1))
    sizes = torch.tensor([[16, 16]])
    cosines = torch.nn.functional.normalize(embedding.double(), dim=1)[0]
    for competition in (0.0, 30.0):
        options = DetectionOptions(competition=competition)
        (found,) = postprocess(predictions, [classifier], input_sizes=sizes, original_sizes=sizes, options=options)
        chosen = cosines - lowered.double()
        absolute = cosines if competition else chosen
        expected = ((9 * absolute - 4).sigmoid() * 0.5).sqrt() * (competition * chosen).softmax(dim=0).sqrt()
        if not competition:
            expected = ((9 * absolute - 4).sigmoid() * 0.5).sqrt()
        order = found.classes.argsort()
        torch.testing.assert_close(found.scores[order].double(), expected, atol=1e-6, rtol=1e-5)
