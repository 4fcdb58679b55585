"""Image-level labels on the largest proposal."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ovd.model.image_labels import image_label_loss
from ovd.model.similarity import TextClassifier
from ovd.structures import Batch, Points, Predictions, Targets

SCALE, BIAS = torch.tensor(5.0), torch.tensor(-1.0)


def targets(own: list[int]) -> Targets:
    return replace(Targets.empty(), image_texts=torch.tensor(own, dtype=torch.int64))


def make(num_points: int = 30, seed: int = 0) -> tuple[Predictions, Points, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(3, num_points, 2, generator=generator) * 40 + 1  # many boxes leave their image
    corners = torch.rand(3, num_points, 2, generator=generator) * 10
    predictions = Predictions(
        embeddings=torch.randn(3, num_points, 6, generator=generator, requires_grad=True),
        boxes=torch.cat([corners, corners + sides], dim=2),
        quality=torch.randn(3, num_points, generator=generator),
    )
    points = Points(torch.rand(num_points, 2, generator=generator) * 40, torch.full((num_points,), 8.0))
    return predictions, points, F.normalize(torch.randn(4, 6, generator=generator), dim=1)


def batch(own: list[list[int]]) -> Batch:
    sizes = torch.tensor([[32, 32], [32, 24], [24, 32]])
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    is_pair = torch.tensor([False, True, True])
    return Batch(images, sizes, (targets([]), *map(targets, own)), (1, 2, 3), is_pair)


def of_pairs(text: torch.Tensor) -> TextClassifier:
    """Build a classifier of the pairs' texts, without the first row, which is a class of the vocabulary."""
    classes = torch.tensor([1, 10, 11, 12])
    return TextClassifier(text, classes, SCALE, BIAS).select(classes >= 10)


@pytest.mark.parametrize(("num_points", "seed"), [(60, 0), (30, 0), (30, 1), (12, 2), (12, 3)])
def test_equals_a_loop_over_points_and_texts(num_points, seed):
    """Compare images with more than 20 points inside, and with fewer."""
    predictions, points, text = make(num_points, seed)
    own = [[10, 12], [11]]
    loss = image_label_loss(predictions, batch(own), of_pairs(text), points)
    expected = 0.0
    for image, mine in zip((1, 2), own, strict=True):
        height, width = batch(own).sizes[image].tolist()
        scored = []
        for point in range(num_points):
            x, y = points.centers[point].tolist()
            if x >= width or y >= height:
                continue
            cosine = F.normalize(predictions.embeddings[image, point], dim=0) @ text[1:].T
            logits = SCALE * cosine + BIAS
            x0, y0, x1, y1 = predictions.boxes[image, point].tolist()
            area = (min(x1, width) - min(x0, width)) * (min(y1, height) - min(y0, height))
            score = logits.max().sigmoid() * predictions.quality[image, point].sigmoid()
            scored.append((score.item(), area, logits))
        best = sorted(scored, key=lambda item: -item[0])[:20]
        logits = max(best, key=lambda item: item[1])[2]
        for logit, name in zip(logits, (10, 11, 12), strict=True):
            expected += -F.logsigmoid(logit if name in mine else -logit).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_learning_reaches_one_point_of_each_pair():
    predictions, points, text = make()
    image_label_loss(predictions, batch([[10], [11]]), of_pairs(text), points).backward()
    assert predictions.embeddings.grad is not None
    assert (predictions.embeddings.grad.abs().sum(dim=2) > 0).sum(dim=1).tolist() == [0, 1, 1]


def test_without_pairs_there_is_no_loss():
    predictions, points, text = make()
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    empty = Batch.without_pairs(images, torch.full((3, 2), 32), (targets([]),) * 3, (1, 2, 3))
    no_pairs = torch.zeros(4, dtype=torch.bool)
    classifier = TextClassifier(text, torch.arange(4), SCALE, BIAS).select(no_pairs)
    assert image_label_loss(predictions, empty, classifier, points).item() == 0


def test_a_pair_alone_on_its_rank_still_has_the_texts_of_the_others_as_negatives():
    predictions, points, text = make()
    own = [[10, 12], [11]]
    whole = image_label_loss(predictions, batch(own), of_pairs(text), points)
    parts = []
    for image in (1, 2):
        rows = slice(image, image + 1)
        alone = Predictions(predictions.embeddings[rows], predictions.boxes[rows], predictions.quality[rows])
        part = batch(own).of_images(rows)
        parts.append(image_label_loss(alone, part, of_pairs(text), points))
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 0, 1], [0, 2, 1]])
def test_pairs_may_stand_anywhere_in_a_batch(order):
    predictions, points, text = make()
    given = batch([[10, 12], [11]])
    shuffled = Batch(
        given.images,
        given.sizes[order],
        tuple(given.targets[row] for row in order),
        tuple(given.image_ids[row] for row in order),
        given.is_pair[order],
    )
    moved = Predictions(
        predictions.embeddings.detach()[order].requires_grad_(), predictions.boxes[order], predictions.quality[order]
    )
    losses = []
    for its_predictions, its_batch in ((predictions, given), (moved, shuffled)):
        loss = image_label_loss(its_predictions, its_batch, of_pairs(text), points)
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1])
    assert predictions.embeddings.grad is not None
    assert moved.embeddings.grad is not None
    assert torch.equal(moved.embeddings.grad, predictions.embeddings.grad[order])
