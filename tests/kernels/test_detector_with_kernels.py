"""A detector, its loss and its gradients are the same with kernels as without."""

import copy

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from small_detector import build_detector
from torch.nn import functional as F

from ovd import kernels
from ovd.model.backbone_convolution import ClipResNetBackbone
from ovd.model.focal import point_focal_loss
from ovd.structures import IGNORED

pytest.importorskip("triton")


def outputs_and_gradients(detector, images):
    """Compute the class loss, boxes, quality, and the gradient of every parameter."""
    generator = torch.Generator().manual_seed(1)
    predictions = detector(images)
    num_points = predictions.quality.numel()
    text = F.normalize(torch.randn(9, predictions.embeddings.shape[2], generator=generator), dim=1)
    labels = torch.randint(IGNORED, 9, (num_points,), generator=generator)
    mask = torch.rand(2, 9, generator=generator) < 0.7
    group = torch.randint(0, 2, (num_points,), generator=generator)
    embeddings = predictions.embeddings.flatten(0, 1)
    loss = point_focal_loss(embeddings, detector.classifier(text), labels, mask, group)
    (loss / num_points + 1e-3 * predictions.boxes.mean() + predictions.quality.square().mean()).backward()
    gradients = {name: parameter.grad for name, parameter in detector.named_parameters() if parameter.grad is not None}
    return {
        "loss": loss,
        "embeddings": embeddings,
        "boxes": predictions.boxes,
        "quality": predictions.quality,
    }, gradients


@pytest.mark.slow
@pytest.mark.parametrize("places", [("pyramid", "head"), ("head",), ()])
def test_a_detector_with_kernels_is_the_same(places, untrained_clip, monkeypatch):
    torch.manual_seed(0)
    plain = build_detector(untrained_clip, *places).train().to(memory_format=torch.channels_last)
    with torch.no_grad():  # open the gates
        for parameter in plain.shortcuts.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    fused = copy.deepcopy(plain)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected, gradients = outputs_and_gradients(plain, images)
    monkeypatch.setattr(kernels, "supports", lambda x: True)
    found, found_gradients = outputs_and_gradients(fused, images)
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-4, atol=1e-4 * expected[name].abs().max().item()
        )
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        error = (found_gradients[name] - gradient).norm()
        assert error <= 1e-3 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("size", [pytest.param((64, 96), marks=pytest.mark.slow), (32, 64)])
def test_clips_resnet_with_kernels_is_the_same(size, monkeypatch):
    torch.manual_seed(0)
    visual = ModifiedResNet(layers=[1, 2, 1, 1], output_dim=12, heads=2, image_size=64, width=8)
    for module in visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    images = torch.randn(2, 3, *size)
    visual.eval()
    with torch.no_grad():  # open_clip's own forward pass, before norms are folded
        expected = visual.stem(images)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            expected = visual.get_submodule(name)(expected)
    backbone = ClipResNetBackbone(visual).to(memory_format=torch.channels_last)
    found = {}
    for with_kernels in (False, True):
        if with_kernels:
            monkeypatch.setattr(kernels, "supports", lambda x: True)
        backbone.zero_grad()
        output = backbone(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(output.last, expected, rtol=1e-3, atol=1e-4)
        sum(features.square().mean() for features in output.features).backward()  # type: ignore[union-attr]
        found[with_kernels] = {
            name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.grad is not None
        }
    assert found[True].keys() == found[False].keys()
    for name, gradient in found[False].items():
        assert (found[True][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-7, name
