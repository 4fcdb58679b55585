"""The pairs found by their cosines are those of a full sort of all scores."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovd.model import pair_scores
from ovd.model.best_pairs import Pairs, best_pairs
from ovd.model.detection_options import DetectionOptions
from ovd.model.pair_scores import PairScores, PointPredictions, Scoring
from ovd.model.rough_cosines import RoughCosines
from ovd.model.similarity import TextClassifier, lengths, unit_embeddings

DIM = 6


def make_points(count: int, *, hidden: int = 0, seed: int = 0) -> PointPredictions:
    """Make random points with empty boxes; the first `hidden` ones have quality 0, as in the padding."""
    generator = torch.Generator().manual_seed(seed)
    quality = 2 * torch.randn(count, generator=generator)
    quality[:hidden] = -torch.inf
    return PointPredictions(torch.randn(count, DIM, generator=generator), torch.zeros(count, 4), quality, dense=None)


def make_classifier(num_classes: int, *, scale: float = 20.0, lowers: bool = False) -> TextClassifier:
    generator = torch.Generator().manual_seed(1)
    text = unit_embeddings(torch.randn(num_classes, DIM, generator=generator))
    lowered = 0.2 * torch.rand(num_classes, generator=generator) if lowers else None
    return TextClassifier(text, torch.arange(num_classes), torch.tensor(scale), torch.tensor(-0.5 * scale), lowered)


def full_sort(scores: Tensor, count: int, above: float) -> Pairs:
    values, order = scores.flatten().sort(descending=True, stable=True)
    order, values = order[values > above][:count], values[values > above][:count]
    return Pairs(order // scores.shape[1], order % scores.shape[1], values)


def assert_equal(found: Pairs, expected: Pairs) -> None:
    """Check that pairs are equal except for the order of scores that differ by rounding alone."""
    torch.testing.assert_close(found.scores, expected.scores)
    differ = (found.points != expected.points) | (found.classes != expected.classes)
    ends = torch.tensor([-1.0])
    steps = torch.cat([ends, expected.scores, ends]).diff().abs()
    assert (torch.minimum(steps[:-1], steps[1:])[differ] < 1e-6).all()


def split(monkeypatch: pytest.MonkeyPatch, chunk_size: int) -> None:
    """Let points be scored `chunk_size` at a time."""
    monkeypatch.setattr(pair_scores, "points_per_chunk", lambda num_classes, device: chunk_size)


@pytest.fixture(params=["exact cosines", "rough cosines"])
def cosines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the cosines of a CPU without or with fast bfloat16, independent of the one in use."""
    monkeypatch.setattr(pair_scores, "rough_is_faster", lambda points, classifier: request.param == "rough cosines")
    for limit in ("FEW_PAIRS", "FEW_COMPETING_PAIRS"):  # even though there are few pairs here
        monkeypatch.setattr(f"ovd.model.best_pairs.{limit}", 0)


@pytest.mark.usefixtures("cosines")
@pytest.mark.parametrize("num_classes", [1, 31, 300])
@pytest.mark.parametrize("lowers", [False, True])
@pytest.mark.parametrize("competition", [0.0, 15.0])
@pytest.mark.parametrize(("count", "above"), [(1, 0.0), (20, 0.0), (200, 0.3), (10_000, 0.05)])
@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_equals_a_full_sort(num_classes, lowers, competition, count, above, chunk_size, monkeypatch):
    split(monkeypatch, chunk_size)
    options = DetectionOptions(competition=competition, candidates=count, score_threshold=above)
    points, scoring = make_points(60, hidden=9), Scoring([make_classifier(num_classes, lowers=lowers)], options)
    (found,) = best_pairs(points, scoring)
    assert_equal(found, full_sort(scoring.pair_scores(points).all_scores(), count, above))


@pytest.mark.usefixtures("cosines")
@pytest.mark.parametrize("scale", [200.0, 3000.0])
def test_where_probabilities_round_to_0_and_1_no_high_score_is_missed(scale, monkeypatch):
    split(monkeypatch, 64)
    points, scoring = make_points(200), Scoring([make_classifier(500, scale=scale)], DetectionOptions(candidates=50))
    (found,) = best_pairs(points, scoring)
    torch.testing.assert_close(found.scores, full_sort(scoring.pair_scores(points).all_scores(), 50, 0.0).scores)


@pytest.mark.usefixtures("cosines")
@pytest.mark.parametrize("competition", [0.0, 15.0])
def test_few_pairs_are_scored(competition, monkeypatch):
    scored, score = [], PairScores.scores_of_pairs

    def counted(self: PairScores, rows: Tensor, classes: Tensor) -> Tensor:
        scored.append(len(rows))
        return score(self, rows, classes)

    monkeypatch.setattr(PairScores, "scores_of_pairs", counted)
    split(monkeypatch, 100)
    scoring = Scoring([make_classifier(600)], DetectionOptions(competition=competition, candidates=100))
    (found,) = best_pairs(make_points(400), scoring)
    assert len(found) == 100
    assert len(scored) == 4, "the chunks, each once"
    assert sum(scored) < 0.01 * 400 * 600


@pytest.mark.parametrize("limit", [0, 2**30], ids=["by cosine", "by score"])
@pytest.mark.parametrize("one_name_per_place", [None, 0.5])
@pytest.mark.parametrize("competition", [0.0, 15.0])
@pytest.mark.parametrize(("count", "above"), [(20, 0.0), (200, 0.3), (10_000, 0.05)])
def test_several_images_at_once_have_their_own_pairs(count, above, competition, one_name_per_place, limit, monkeypatch):
    """Each image has the pairs that it has alone, even if those of one image all score lower than those of another."""
    for name in ("FEW_PAIRS", "FEW_COMPETING_PAIRS"):
        monkeypatch.setattr(f"ovd.model.best_pairs.{name}", limit)
    options = DetectionOptions(
        competition=competition, candidates=count, score_threshold=above, one_name_per_place=one_name_per_place
    )
    scoring = Scoring([make_classifier(300)], options)
    images = [make_points(50, hidden=hidden, seed=seed) for seed, hidden in enumerate((0, 50, 9, 0))]
    images[3] = replace(images[3], quality=images[3].quality - 6)
    together = best_pairs(PointPredictions.join(images), scoring, len(images))
    for row, (image, found) in enumerate(zip(images, together, strict=True)):
        (alone,) = best_pairs(image, scoring)
        assert_equal(replace(found, points=found.points - 50 * row), alone)


@pytest.mark.parametrize("one_name_per_place", [None, 0.5])
@pytest.mark.parametrize("lowers", [False, True])
@pytest.mark.parametrize("competition", [0.0, 15.0])
def test_images_with_classifiers_of_their_own_have_the_pairs_that_they_have_alone(
    competition, lowers, one_name_per_place
):
    options = DetectionOptions(
        competition=competition, candidates=50, score_threshold=0.02, one_name_per_place=one_name_per_place
    )
    images, classifier = [make_points(40, seed=seed) for seed in range(3)], make_classifier(30, lowers=lowers)
    own = [classifier.select(rows) for rows in torch.arange(30).split([9, 1, 20])]
    together = best_pairs(PointPredictions.join(images), Scoring(own, options), len(images))
    for row, (image, of_image, found) in enumerate(zip(images, own, together, strict=True)):
        (alone,) = best_pairs(image, Scoring([of_image], options))
        assert len(alone) > 0
        assert torch.equal(found.points - 40 * row, alone.points)
        assert torch.equal(found.classes, alone.classes)
        torch.testing.assert_close(found.scores, alone.scores, rtol=1e-6, atol=0)


def test_only_hidden_points_have_no_pairs(monkeypatch):
    split(monkeypatch, 4)
    scoring = Scoring([make_classifier(40)], DetectionOptions(candidates=5))
    (found,) = best_pairs(make_points(9, hidden=9), scoring)
    assert len(found) == 0


@pytest.mark.parametrize("scale", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("competition", [0.0, 30.0, 100.0])
@pytest.mark.parametrize("count", [1, 100, 20_000])
def test_the_bound_on_cosines_leaves_no_pair_out_and_few_in(scale, competition, count):
    classifier = make_classifier(300, scale=scale, lowers=True)
    scores = PairScores(make_points(200, hidden=9), [classifier], DetectionOptions(competition=competition))
    score = scores.all_scores().flatten().topk(count).values[-1]
    passed = scores.cosines >= scores.min_cosines(score.expand(200))[:, None]
    wanted = (scores.all_scores() >= score) & (scores.all_scores() > 0)
    assert not (wanted & ~passed).any()
    assert int(passed.sum()) <= 10 * max(count, 100)


@pytest.mark.parametrize("lowers", [False, True])
@pytest.mark.parametrize("dim", [3, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rough_cosines_are_within_their_bounds(dtype, lowers, dim):
    generator = torch.Generator().manual_seed(0)
    text = unit_embeddings(torch.randn(500, dim, generator=generator))
    lowered = torch.rand(500, generator=generator) if lowers else None
    classifier = TextClassifier(text, torch.arange(500), torch.tensor(1.0), torch.tensor(0.0), lowered)
    # Some are nearly equal or opposite to a text, since such cosines have the largest errors.
    noise = torch.randn(300, dim, generator=generator)
    embeddings = torch.cat([noise, text[:200] + 1e-3 * noise[:200], -text[:200]])
    embeddings = (embeddings * 10 ** torch.randn(len(embeddings), 1, generator=generator)).to(dtype)
    rough = RoughCosines.compute(embeddings, lengths(embeddings), classifier)
    exact = F.normalize(embeddings.double(), dim=1) @ text.double().T - (0 if lowered is None else lowered.double())
    assert (rough.values[:, 500:] == -torch.inf).all()
    values = rough.values[:, :500].float()
    assert (rough.exact_lower_bounds(values) <= exact).all()
    assert float((exact - rough.exact_lower_bounds(values)).max()) < 0.04
    for cosine in (-1.0, -0.3, 0.0, 0.02, 0.9):
        passes = values >= rough.min_values(torch.full((len(embeddings),), cosine))[:, None]
        assert (passes | (exact < cosine)).all()
        assert (exact[passes] > cosine - 0.04).all()
    rows, classes = torch.randint(500, (2, 40), generator=generator)
    rows = rows.sort().values
    pairs = classifier.pair_cosines(embeddings, lengths(embeddings), rows, classes)
    torch.testing.assert_close(pairs.double(), exact[rows, classes], atol=1e-6, rtol=0)
