"""Region distillation against plain loops, and its teacher against open_clip's own encoding of slices."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from plain_iou import iou
from torch.nn import functional as F

from ovd.model.backbone_families import backbone_from_visual
from ovd.model.crop_encoder import CropEncoder, View
from ovd.model.normalization import Normalization
from ovd.model.region_distillation import Regions, region_loss, select_regions
from ovd.model.region_options import RegionOptions
from ovd.model.similarity import TextClassifier
from ovd.precision import Compute
from ovd.structures import Points, Predictions

SIZES = torch.tensor([[96, 64], [48, 120], [0, 0]])
"""Sizes in a batch of 96 x 128: a tall and a wide image, and the blank image of a rank without images."""


def make_classifier(num_classes: int = 5) -> TextClassifier:
    generator = torch.Generator().manual_seed(1)
    text = F.normalize(torch.randn(num_classes, 6, generator=generator), dim=1)
    return TextClassifier(text, torch.arange(num_classes), torch.tensor(6.0), torch.tensor(-2.0))


def make_points() -> Points:
    rows, columns = torch.meshgrid(torch.arange(4, 96, 8), torch.arange(4, 128, 8), indexing="ij")
    centers = torch.stack([columns, rows], dim=2).reshape(-1, 2).float()
    return Points(centers, torch.full((len(centers),), 8.0))


def make_predictions(seed: int) -> Predictions:
    """Make predictions with boxes near a few places, some reaching into the padding, so that many agree and many
    overlap a little."""
    generator = torch.Generator().manual_seed(seed)
    num_points = len(make_points().centers)
    places = torch.rand(3, 12, 4, generator=generator) * torch.tensor([110.0, 80, 40, 40])
    places[..., 2:] += places[..., :2]
    boxes = places[:, torch.randint(12, (num_points,), generator=generator)]
    return Predictions(
        embeddings=torch.randn(3, num_points, 6, generator=generator),
        boxes=boxes + 2 * torch.randn(3, num_points, 4, generator=generator),
        quality=torch.randn(3, num_points, generator=generator) - 1,
    )


def reference(
    predictions: Predictions, image: int, classifier: TextClassifier, points: Points, options: RegionOptions
) -> tuple[list[list[float]], list[tuple[int, int]]]:
    """Return the kept boxes, and pairs of a point and the row of its box."""
    height, width = SIZES[image].tolist()
    candidates = []
    for point, (x, y) in enumerate(points.centers.tolist()):
        embedding = predictions.embeddings[image, point]
        length = math.sqrt(sum(value**2 for value in embedding.tolist()))
        logits = [6 * float(row @ embedding) / length - 2 for row in classifier.text]
        best = max((1 / (1 + math.exp(-logit)) for logit in logits), default=0.0)
        score = math.sqrt(best / (1 + math.exp(-float(predictions.quality[image, point]))))
        x0, y0, x1, y1 = predictions.boxes[image, point].tolist()
        box = [min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height)]
        is_large = box[2] - box[0] > 8 and box[3] - box[1] > 8
        if x < width and y < height and is_large and score > options.min_score:
            candidates.append((score, point, box))
    candidates.sort(key=lambda candidate: -candidate[0])
    kept: list[list[float]] = []
    for _, _, box in candidates:
        if len(kept) < options.boxes and all(iou(box, other) <= 0.5 for other in kept):
            kept.append(box)
    pairs = []
    for row, box in enumerate(kept):
        agreeing = [point for _, point, other in candidates if iou(box, other) > 0.7]
        pairs += [(point, row) for point in agreeing[: options.points]]
    return kept, pairs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [RegionOptions(), RegionOptions(boxes=2, points=1, min_score=0.4), RegionOptions(boxes=50, points=50, min_score=0)],
)
def test_selection_equals_plain_loops(seed, options):
    predictions, classifier, points = make_predictions(seed), make_classifier(), make_points()
    found = select_regions(predictions, classifier, points=points, sizes=SIZES, options=options)
    first, num_points = 0, len(points.centers)
    for image in range(3):
        kept, pairs = reference(predictions, image, classifier, points, options)
        torch.testing.assert_close(found.boxes[image], torch.tensor(kept).reshape(-1, 4))
        of_image = found.point_rows // num_points == image
        point = found.point_rows[of_image] % num_points
        assert list(zip(point.tolist(), (found.box_rows[of_image] - first).tolist(), strict=True)) == pairs
        assert len(kept) > 1 or image == 2
        first += len(kept)
    assert len(found.boxes[2]) == 0
    assert first < len(found.box_rows) or options.points == 1  # some box has several points


@pytest.mark.parametrize("num_classes", [0, 5])
def test_nothing_is_selected_without_classes_or_without_a_box_that_scores_enough(num_classes):
    options = RegionOptions(min_score=0.0 if num_classes == 0 else 1.0)
    found = select_regions(
        make_predictions(0), make_classifier(num_classes), points=make_points(), sizes=SIZES, options=options
    )
    assert [len(boxes) for boxes in found.boxes] == [0, 0, 0]
    assert len(found.point_rows) == len(found.box_rows) == 0


def test_predictions_that_are_not_numbers_are_not_selected():
    whole = make_predictions(0)
    broken = replace(whole, embeddings=whole.embeddings.clone(), boxes=whole.boxes.clone())
    broken.embeddings[:, ::2] = torch.nan
    broken.boxes[:, ::3] = torch.nan
    found = select_regions(
        broken, make_classifier(), points=make_points(), sizes=SIZES, options=RegionOptions(min_score=0.0)
    )
    point = found.point_rows % len(make_points().centers)
    assert len(point) > 0
    assert ((point % 2 != 0) & (point % 3 != 0)).all()


def make_teacher(clip, **changes) -> CropEncoder:
    options = {"views": [View(32, 1.0)], "compute": Compute(torch.device("cpu"), False), **changes}
    backbone = backbone_from_visual(copy.deepcopy(clip.model.visual))
    return CropEncoder(backbone, Normalization(clip.mean, clip.std), **options)


def random_images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (3, 3, 96, 128), generator=generator, dtype=torch.uint8)
    for image, (height, width) in zip(images, SIZES.tolist(), strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images


def test_the_loss_and_its_gradient_equal_a_loop(tiny_clip):
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(3, 7, 256, generator=generator, requires_grad=True)
    boxes = (torch.tensor([[16.0, 40, 48, 72]]), torch.tensor([[88.0, 8, 120, 40], [0, 0, 40, 40]]), torch.zeros(0, 4))
    # Point 2 of the second image agrees with both boxes.
    rows, box = torch.tensor([[5, 0], [1, 0], [7 + 2, 1], [7 + 2, 2]]).T
    teacher = make_teacher(tiny_clip)
    loss = region_loss(embeddings, Regions(boxes, rows, box), random_images(), SIZES, teacher)
    loss.backward()
    wanted = torch.cat(teacher(random_images(), SIZES, boxes))
    again = embeddings.detach().clone().requires_grad_()
    expected = torch.tensor(0.0)
    for i, p, b in ((0, 5, 0), (0, 1, 0), (1, 2, 1), (1, 2, 2)):
        expected = expected + 1 - F.cosine_similarity(again[i, p], wanted[b], dim=0)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert embeddings.grad is not None
    torch.testing.assert_close(embeddings.grad, again.grad)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.backbone.parameters())


def test_without_a_region_the_loss_is_zero_and_its_gradient_too(tiny_clip):
    embeddings = torch.randn(3, 7, 256, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    regions = Regions((torch.zeros(0, 4),) * 3, nothing, nothing)
    loss = region_loss(embeddings, regions, random_images(), SIZES, make_teacher(tiny_clip))
    assert loss.item() == 0
    loss.backward()
    assert embeddings.grad is not None
    assert (embeddings.grad == 0).all()
