"""The side branch of an expert: no effect at the start, features of the backbone's shapes, and sensitivity to color."""

import pytest
import torch
from small_backbones import random_visual
from small_detector import detector_around

from ovd.model.backbone_families import backbone_from_visual
from ovd.model.side_branch import SideBranch


@pytest.mark.parametrize("family", ["clip_resnet", "vit"])
def test_a_fresh_branch_changes_no_prediction_and_gets_gradients(family: str) -> None:
    backbone = backbone_from_visual(random_visual(family))
    side = 4 * backbone.size_divisor
    with torch.no_grad():
        dim = backbone.dense(torch.zeros(1, 3, side, side)).shape[1]
    detector = detector_around(backbone, "pyramid", "head", text_dim=dim, mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, side, 2 * side), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        before = detector(images)
    detector.side = SideBranch(backbone.channels, backbone.strides)
    with torch.no_grad():
        now = detector(images)
    for name in ("embeddings", "boxes", "quality"):
        assert torch.equal(getattr(now, name), getattr(before, name))
    detector(images).boxes.sum().backward()
    gradients = [parameter.grad for parameter in detector.side.outputs.parameters()]
    assert len(gradients) == 2 * len(backbone.strides)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_what_it_adds_sees_color() -> None:
    branch = SideBranch((128, 256), (8, 16))
    for parameter in branch.outputs.parameters():
        torch.nn.init.normal_(parameter)
    gray = torch.zeros(1, 3, 64, 96)
    red = gray.clone()
    red[:, 0] = 1
    features = (torch.rand(1, 128, 8, 12), torch.rand(1, 256, 4, 6))
    zeros = tuple(map(torch.zeros_like, features))
    with torch.no_grad():
        of_gray, of_red = branch(gray, zeros), branch(red, zeros)
        sums = branch(red, features)
    assert [tuple(added.shape) for added in of_red] == [(1, 128, 8, 12), (1, 256, 4, 6)]
    assert all((red - gray).abs().max() > 0.1 for red, gray in zip(of_red, of_gray, strict=True))
    assert all(map(torch.equal, sums, map(torch.add, of_red, features)))


def test_strides_that_are_no_powers_of_2_are_refused() -> None:
    with pytest.raises(ValueError, match=r"powers of 2, at least 8, not 14; set expert\.side=false"):
        SideBranch((64,), (14,))
