"""The boxes at which the dense feature is distilled: random boxes and proposals."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from ovd.alignment.boxes import random_boxes, sample_boxes
from ovd.alignment.proposals import DetectorProposals, EdgeProposals, candidate_boxes, edge_contrast, edge_density
from ovd.config.alignment import AlignBoxes


@pytest.mark.parametrize("size", [(96, 96), (40, 200), (200, 40), (7, 5)])
def test_random_boxes_are_inside_their_image_and_of_the_sizes_asked_for(size):
    boxes = random_boxes(size, 500, sides_px=(8.0, 60.0), aspect=2.0, generator=np.random.default_rng(0))
    height, width = size
    assert boxes.shape == (500, 4)
    assert boxes.dtype == torch.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides > 0).all()
    if size == (96, 96):
        mean_sides, ratios = sides.prod(1).sqrt(), sides[:, 0] / sides[:, 1]
        assert mean_sides.min() > 7.99
        assert mean_sides.max() < 60.1
        assert 0.49 < ratios.min() < 0.6
        assert 1.8 < ratios.max() < 2.01
        assert mean_sides.log().mean() == pytest.approx(np.log([8, 60]).mean(), abs=0.1)
        centers = (boxes[:, :2] + boxes[:, 2:]).mean(0) / 2
        torch.testing.assert_close(centers, torch.tensor([48.0, 48.0]), atol=3, rtol=0)


IMAGE_IDS: Sequence[int] = (4, 9, 7)


def test_boxes_of_a_step_depend_on_the_image_and_the_step_alone():
    options = AlignBoxes(random=2, proposals=3)
    found = [torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.rand(5, 4), torch.zeros(0, 4)]
    sizes = torch.tensor([[90, 80], [90, 80], [70, 60]])

    def draw(rows: slice, step: int) -> list[torch.Tensor]:
        return sample_boxes(
            sizes[rows], IMAGE_IDS[rows], found[rows], options, sides_px=(10.0, 50.0), seeds=(0, step)
        )  # fmt: skip

    whole = draw(slice(3), 5)
    assert [len(of_image) for of_image in whole] == [5, 5, 5]
    assert torch.equal(whole[0][:1], found[0])
    assert torch.equal(whole[1][:3], found[1][:3])
    for one, other in zip(whole[1:], draw(slice(1, 3), 5), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole[2], draw(slice(3), 6)[2])

    def draw_alike(seed: int) -> list[torch.Tensor]:
        return sample_boxes(sizes[:2], (4, 9), [found[2]] * 2, options, sides_px=(10.0, 50.0), seeds=(seed, 5))

    one, other = draw_alike(0)
    assert not torch.equal(one, other)  # images of one size have boxes of their own
    assert not torch.equal(one, draw_alike(1)[0])  # and so have the seeds of a run
    blank = sample_boxes(sizes[:1], (), [found[2]], options, sides_px=(10.0, 50.0), seeds=(0, 0))
    assert [tuple(of_image.shape) for of_image in blank] == [(0, 4)]


def test_an_image_without_any_box_is_refused_by_the_config():
    with pytest.raises(ValueError, match="needs at least one box"):
        AlignBoxes(random=0, proposals=0)
    with pytest.raises(ValueError, match="the smallest must come first"):
        AlignBoxes(sides=(0.5, 0.1))


def test_edge_contrast_is_that_of_plain_slices():
    edges = torch.rand(12, 17, generator=torch.Generator().manual_seed(0))
    boxes = candidate_boxes(12, 17, (3.0, 9.0), torch.device("cpu"))
    assert len(boxes) > 50
    assert (boxes[:, 2:] <= torch.tensor([17, 12])).all()
    for (x0, y0, x1, y1), value in zip(boxes.tolist()[::7], edge_contrast(edges, boxes)[::7], strict=True):
        ring = max(1, round((x1 - x0 + y1 - y0) / 2 * 0.25))
        is_inside = torch.zeros(12, 17, dtype=torch.bool)
        is_inside[y0:y1, x0:x1] = True
        is_near = torch.zeros(12, 17, dtype=torch.bool)
        is_near[max(0, y0 - ring) : y1 + ring, max(0, x0 - ring) : x1 + ring] = True
        is_ring = is_near & ~is_inside
        outside = edges[is_ring].mean() if is_ring.any() else torch.tensor(0.0)
        expected = (edges[is_inside].mean() - outside) * is_inside.sum() ** 0.25
        assert value == pytest.approx(float(expected), abs=1e-5)


def test_edges_are_where_pixels_differ():
    image = torch.zeros(3, 9, 12, dtype=torch.uint8)
    image[1, 4:, :] = 100
    density = edge_density(image, 4)
    assert density.shape == (3, 3)
    torch.testing.assert_close(density, torch.tensor([[0.0] * 3, [25.0] * 3, [0.0] * 3]))


def test_edge_density_is_that_of_a_loop_over_pixels():
    image = torch.randint(0, 256, (3, 7, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = image.numpy().astype(float)
    strength = np.zeros((7, 10))
    for y in range(7):
        for x in range(10):
            left = np.abs(values[:, y, x] - values[:, y, x - 1]).max() if x else 0
            upper = np.abs(values[:, y, x] - values[:, y - 1, x]).max() if y else 0
            strength[y, x] = left + upper
    expected = [[strength[y : y + 4, x : x + 4].mean() for x in (0, 4, 8)] for y in (0, 4)]
    np.testing.assert_allclose(edge_density(image, 4).numpy(), expected, rtol=1e-5)


def test_candidate_boxes_have_three_shapes_of_each_size_up_to_the_borders():
    boxes = candidate_boxes(12, 17, (3.0, 9.0), torch.device("cpu"))
    sides = [3.0 * 2 ** (number / 3) for number in range(5)]  # the next one, 9.5, is beyond the largest
    expected = {
        (round(side * math.sqrt(ratio)), round(side / math.sqrt(ratio))) for side in sides for ratio in (2 / 3, 1, 1.5)
    }
    assert set(map(tuple, (boxes[:, 2:] - boxes[:, :2]).tolist())) == expected
    small = boxes[(boxes[:, 2:] - boxes[:, :2] == 3).all(dim=1)]  # in steps of one cell
    assert small.tolist() == [[x, y, x + 3, y + 3] for x in range(15) for y in range(10)]


def test_edges_find_what_stands_out_and_see_no_padding():
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(2, 3, 128, 160, dtype=torch.uint8)
    images[0, :, :96] = 120 + torch.randint(-4, 5, (3, 96, 160), generator=generator).to(torch.uint8)
    images[1, :, :, :100] = 120
    true = torch.tensor([[20.0, 30.0, 60.0, 70.0], [100.0, 16.0, 124.0, 44.0]])
    for x0, y0, x1, y1 in true.long().tolist():
        texture = torch.randint(0, 256, (3, (y1 - y0) // 4, (x1 - x0) // 4), generator=generator).float()
        images[0, :, y0:y1, x0:x1] = F.interpolate(texture[None], scale_factor=4)[0].to(torch.uint8)
    propose = EdgeProposals(sides_px=(16.0, 80.0), count=4)
    first, blank = propose(images, torch.tensor([[96, 160], [128, 100]]))
    assert box_iou(true, first[:2]).amax(dim=1).min() > 0.6
    assert len(first) <= 4
    assert (first[:, 2:] <= torch.tensor([160.0, 96.0])).all()
    assert len(blank) <= 4  # a blank image has no edges, so no box is better than another
    alone = propose(images[:1, :, :96], torch.tensor([[96, 160]]))[0]
    assert torch.equal(first, alone)
    assert propose(images[:1], torch.tensor([[0, 0]]))[0].shape == (0, 4)


def test_a_detectors_proposals_are_its_best_boxes_whatever_their_class(tiny_clip):
    from small_detector import build_detector

    from ovd.inference import Inference
    from ovd.model.detection_options import DetectionOptions

    detector = build_detector(tiny_clip, "pyramid", "head").eval()
    detector.set_bias(0.0)
    inference = Inference(detector, size=96, options=DetectionOptions(), low_precision=False)
    text = F.normalize(torch.randn(5, tiny_clip.dim, generator=torch.Generator().manual_seed(0)), dim=1)
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[96, 128], [64, 100]])
    propose = DetectorProposals(inference, text, smallest_px=6.0, count=7)
    assert propose.size_divisor == detector.size_divisor
    found = propose(images, sizes)

    def mean_sides(smallest_px: float) -> torch.Tensor:
        boxes = torch.cat(DetectorProposals(inference, text, smallest_px=smallest_px, count=1000)(images, sizes))
        return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()

    limit = float(mean_sides(0.0).quantile(0.3))
    assert mean_sides(0.0).min() < limit <= mean_sides(limit).min()
    predictions = inference.predict(images, sizes)
    for boxes, size, embeddings, quality, raw in zip(
        found, sizes, predictions.embeddings, predictions.quality, predictions.boxes, strict=True
    ):
        assert 0 < len(boxes) <= 7
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= size[[1, 0]]).all()
        assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.5
        probability = detector.classifier(text).logits(embeddings).sigmoid().amax(dim=1)
        scores = (probability * quality.sigmoid()).sqrt()
        clipped = torch.minimum(raw.clamp(min=0), size[[1, 0, 1, 0]])
        scores = scores.masked_fill((clipped[:, 2:] - clipped[:, :2]).prod(1) < 36, 0)
        assert torch.equal(boxes[0], clipped[scores.argmax()])
