"""Losses of the alignment: the dense feature at boxes against CLIP's embeddings of their crops."""

import pytest
import torch
from torch.nn import functional as F

from ovd.alignment.losses import dense_at_boxes, distillation_losses

BOXES = [
    torch.tensor([[0.0, 0.0, 32.0, 48.0], [5.0, 9.0, 71.0, 44.0]]),
    torch.zeros(0, 4),
    torch.tensor([[64.0, 16.0, 96.0, 64.0]]),
]


def make_dense() -> torch.Tensor:
    return torch.randn(3, 8, 4, 6, generator=torch.Generator().manual_seed(0))


def test_a_point_is_the_bilinear_value_at_the_boxs_center():
    points, _ = dense_at_boxes(make_dense(), BOXES, 16)
    centers = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in BOXES]
    expected = [
        F.grid_sample(
            image[None], (of_image / torch.tensor([48.0, 32.0]) - 1)[None, None],
            align_corners=False, padding_mode="border",
        )[0, :, 0].T
        for image, of_image in zip(make_dense(), centers, strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(points, F.normalize(torch.cat(expected), dim=1))


def test_a_box_on_the_grid_has_the_mean_of_its_cells():
    _, means = dense_at_boxes(make_dense(), BOXES, 16)
    dense = make_dense()
    expected = torch.stack([dense[0, :, :3, :2].mean((1, 2)), dense[2, :, 1:4, 4:6].mean((1, 2))])
    torch.testing.assert_close(means[[0, 2]], F.normalize(expected, dim=1))


def test_the_losses_are_sums_of_one_minus_cosine():
    points, means = dense_at_boxes(make_dense(), BOXES, 16)
    targets = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    losses = distillation_losses(make_dense(), BOXES, targets, 16)
    assert losses["point"].item() == pytest.approx(3 - F.cosine_similarity(points, targets).sum().item(), abs=1e-5)
    assert losses["box"].item() == pytest.approx(3 - F.cosine_similarity(means, targets).sum().item(), abs=1e-5)
    assert distillation_losses(make_dense(), BOXES, points, 16)["point"].item() == pytest.approx(0, abs=1e-5)


def test_without_boxes_there_is_a_gradient_of_nought():
    dense = make_dense().requires_grad_()
    losses = distillation_losses(dense, [torch.zeros(0, 4)] * 3, torch.zeros(0, 1), 16)
    torch.stack(list(losses.values())).sum().backward()
    assert dense.grad is not None
    assert (dense.grad == 0).all()
