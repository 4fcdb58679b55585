"""The Triton kernels compute what torch's own operations do; without a GPU, they run in Triton's interpreter."""

import os

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

pytest.importorskip("triton")

from ovd.kernels.bias_relu import BiasRelu
from ovd.kernels.focal import FocalLoss
from ovd.kernels.fold import FoldNorm
from ovd.kernels.group_norm import GroupNormRelu
from ovd.kernels.neighbors import WeightedNeighbors
from ovd.kernels.pool import AvgPool2x2
from ovd.kernels.rows import NormalizeRows
from ovd.model.focal import ALPHA
from ovd.model.neighbors import _WeightedNeighbors
from ovd.model.similarity import EPSILON
from ovd.structures import IGNORED

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = random(*output.shape, seed=9).to(output.dtype) if output.ndim else output.new_tensor(1.5)
    return torch.autograd.grad(output, inputs, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 24), (7, 1), (1, 1), (2, 1025), (0, 8)])
def test_unit_rows(dtype, shape):
    x = random(*shape).to(dtype).requires_grad_()
    unit = NormalizeRows.apply(x, 1e-12)
    reference = F.normalize(x.float(), dim=-1)
    assert unit.dtype == dtype
    relative, absolute = (1e-2, 2e-2) if dtype == torch.bfloat16 else (1e-5, 1e-6)
    torch.testing.assert_close(unit.float(), reference, rtol=relative, atol=absolute)
    (measured,), (expected,) = gradients(unit, x), gradients(reference, x)
    torch.testing.assert_close(measured, expected, rtol=relative, atol=absolute)
    # The gradient of a sum is a single number expanded to all elements.
    sums = NormalizeRows.apply(x, 1e-12).sum(), F.normalize(x.float(), dim=-1).sum()
    (measured,), (expected,) = (torch.autograd.grad(total, x) for total in sums)
    torch.testing.assert_close(measured, expected, rtol=relative, atol=absolute)


@pytest.mark.parametrize("part", [lambda x: x[:, ::2], lambda x: x.t(), lambda x: x[:, 3:9], lambda x: x[1::2]])
def test_unit_rows_that_are_apart_in_memory(part):
    x = random(5, 40).requires_grad_()
    measured, expected = NormalizeRows.apply(part(x), 1e-12), F.normalize(part(x), dim=-1)
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(measured, x), gradients(expected, x), rtol=1e-5, atol=1e-6)


def test_a_row_of_zeros_stays_zero():
    x = torch.zeros(2, 4, device=DEVICE, requires_grad=True)
    unit = NormalizeRows.apply(x, 1e-12)
    assert torch.equal(unit, torch.zeros_like(x))
    unit.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(2, 5, 7, 40), (1, 1, 1, 8), (2, 1, 17, 1), (1, 3, 19, 130)])
def test_weighted_neighbors(size, shape):
    x = random(*shape).requires_grad_()
    weights = random(*shape[:3], size * size, seed=1).requires_grad_()
    measured = WeightedNeighbors.apply(x, weights, size)
    expected = _WeightedNeighbors.apply(x.permute(0, 3, 1, 2), weights.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(measured, x, weights), gradients(expected, x, weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (33, 70)])
def test_group_norm(relu, size):
    x = (3 * random(2, 32, *size) + random(1, 32, 1, 1, seed=2)).requires_grad_()
    weight, bias = random(32, seed=3).requires_grad_(), random(32, seed=4).requires_grad_()
    measured = GroupNormRelu.apply(x, weight, bias, 4, 1e-5, relu)
    expected = F.group_norm(x, 4, weight, bias, 1e-5)
    expected = F.relu(expected) if relu else expected
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-5)
    assert measured.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        gradients(measured, x, weight, bias), gradients(expected, x, weight, bias), rtol=1e-3, atol=2e-4
    )


@pytest.mark.parametrize("mean", [1e2, -1e4])
@pytest.mark.parametrize("spread", [0.0, 3.0], ids=["one mean", "means apart"])
def test_group_norm_of_numbers_far_from_zero_is_exact(mean, spread):
    """Group norm of numbers far from zero is as exact as float64, with an outlier in the map's corner as after a padded
    convolution."""
    x = mean + spread * random(1, 32, 1, 1, seed=2) + random(2, 32, 33, 70)
    x[:, :, 0, 0] += 5
    weight, bias = random(32, seed=3), random(32, seed=4)
    given = [one.requires_grad_() for one in (x, weight, bias)]
    measured = GroupNormRelu.apply(*given, 4, 1e-5, False)
    exact = exact_x, exact_weight, exact_bias = tuple(one.detach().double().requires_grad_() for one in given)
    expected = F.group_norm(exact_x, 4, exact_weight, exact_bias, 1e-5)
    nearest = max(1e-5, 2**-23 * abs(mean))  # a float32 mean is not more exact
    torch.testing.assert_close(measured.double(), expected, rtol=0, atol=4 * nearest)
    for one, other in zip(gradients(measured, *given), gradients(expected, *exact), strict=True):
        scale = other.abs().max()
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=0, atol=4 * nearest)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("num_points", "num_classes"), [(50, 7), (9, 200), (2, 5000), (1, 1), (0, 3)])
def test_focal_loss(num_points, num_classes, masked, monkeypatch):
    """The focal loss equals torchvision's on all logits in float64, for embeddings of any length."""
    monkeypatch.setattr("ovd.kernels.focal.CHUNK", 64 * 20)  # so that there are several chunks
    embeddings = (random(num_points, 16) * (0.1 + random(num_points, 1, seed=1).abs())).requires_grad_()
    text = F.normalize(random(num_classes, 16, seed=2), dim=1).requires_grad_()
    scale = torch.tensor(20.0, device=DEVICE, requires_grad=True)
    bias = torch.tensor(-3.0, device=DEVICE, requires_grad=True)
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(IGNORED, num_classes, (num_points,), generator=generator).to(DEVICE)
    mask = (torch.rand(3, num_classes, generator=generator) < (0.6 if masked else 1)).to(DEVICE)
    group = torch.randint(0, 3, (num_points,), generator=generator).to(DEVICE)
    measured = FocalLoss.apply(embeddings, text, scale, bias, labels, mask, group, EPSILON, ALPHA)

    inputs = embeddings, text, scale, bias
    logits = scale.double() * (F.normalize(embeddings.double(), dim=1) @ text.double().T) + bias.double()
    own = labels[:, None] == torch.arange(num_classes, device=DEVICE)
    counts = (mask[group] | own) & (labels != IGNORED)[:, None]
    expected = (sigmoid_focal_loss(logits, own.double()) * counts).sum()
    torch.testing.assert_close(measured.double(), expected, rtol=1e-5, atol=1e-6)
    relative = 1e-5 if num_classes < 1000 else 3e-5  # more terms round more
    for found, wanted in zip(gradients(measured, *inputs), gradients(expected, *inputs), strict=True):
        error = (found.double() - wanted.double()).abs()  # small gradients are differences of larger ones
        assert error.numel() == 0 or error.max() <= relative * wanted.double().abs().max()


def loss_of_every_class(embeddings: Tensor, text: Tensor, scale: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    mask, group = torch.ones(1, len(text), dtype=torch.bool, device=DEVICE), torch.zeros_like(labels)
    return FocalLoss.apply(embeddings, text, scale, bias, labels, mask, group, EPSILON, ALPHA)


def test_focal_loss_in_bfloat16_is_near():
    embeddings = random(60, 32).bfloat16().requires_grad_()
    text = F.normalize(random(40, 32, seed=2), dim=1)
    scale, bias = torch.tensor(20.0, device=DEVICE), torch.tensor(-3.0, device=DEVICE)
    labels = torch.arange(60, device=DEVICE) % 42 - 2
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        given = embeddings.detach().to(dtype).requires_grad_()
        loss = loss_of_every_class(given, text, scale, bias, labels)
        found[dtype] = (loss.detach(), torch.autograd.grad(loss, given)[0].float())
    (low, low_gradient), (high, gradient) = found.values()
    assert abs(low - high) < 1e-2 * high
    assert (low_gradient - gradient).norm() < 2e-2 * gradient.norm()


def test_what_text_rows_have_in_common_costs_no_precision_in_bfloat16():
    common = 2 * F.normalize(random(1, 64, seed=5), dim=1)  # rows of CLIP's text tower have cosines of 0.8
    text = F.normalize(F.normalize(random(40, 64, seed=2), dim=1) + common, dim=1)
    embeddings = (2 * F.normalize(random(60, 64), dim=1) + common).bfloat16().requires_grad_()
    scale, bias = torch.tensor(100.0, device=DEVICE), torch.tensor(-66.0, device=DEVICE)
    labels = torch.full((60,), -1, device=DEVICE)
    loss = loss_of_every_class(embeddings, text, scale, bias, labels)
    exact = embeddings.detach().double().requires_grad_()
    logits = scale * (F.normalize(exact, dim=1) @ text.double().T) + bias
    expected = sigmoid_focal_loss(logits, torch.zeros_like(logits), reduction="sum")
    torch.testing.assert_close(loss.double(), expected, rtol=5e-4, atol=0)
    (found,), (wanted,) = gradients(loss, embeddings), gradients(expected, exact)
    assert (found.double() - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.parametrize("kept", [(True, True), (True, False), (False, True)])
def test_focal_loss_of_what_needs_a_gradient(kept):
    embeddings, text = random(6, 8).requires_grad_(kept[0]), random(5, 8, seed=1).requires_grad_(kept[1])
    constants = torch.tensor(2.0, device=DEVICE), torch.tensor(0.0, device=DEVICE)
    labels = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    loss_of_every_class(embeddings, text, *constants, labels).backward()
    assert [embeddings.grad is not None, text.grad is not None] == list(kept)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(2, 40, 5, 7), (1, 70, 9, 9), (1, 3, 1, 1), (1, 1, 1, 33), (0, 8, 3, 3)])
def test_bias_shortcut_and_relu(shape, added, relu):
    x = random(*shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    bias, shortcut = random(shape[1], seed=1).requires_grad_(), random(*shape, seed=2).requires_grad_()
    measured = BiasRelu.apply(x * 1, bias, shortcut if added else None, relu)
    expected = x + bias[:, None, None] + (shortcut if added else 0)
    expected = F.relu(expected) if relu else expected
    torch.testing.assert_close(measured, expected)
    inputs = [x, bias, *([shortcut] if added else [])]
    torch.testing.assert_close(gradients(measured, *inputs), gradients(expected, *inputs), rtol=1e-5, atol=1e-5)


def test_a_number_that_is_none_stays_none_behind_a_relu():
    """NaN stays NaN behind a ReLU, as in torch, so that broken weights are noticed."""
    x = random(1, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    x[0, 5, 1, 1] = torch.nan
    x.requires_grad_()
    expected = F.relu(x)
    measured = BiasRelu.apply(x * 1, torch.zeros(32, device=DEVICE), None, True)
    assert torch.equal(measured.isnan(), expected.isnan())
    assert torch.equal(*(torch.autograd.grad(out.nansum(), x)[0] for out in (measured, expected)))
    weight, bias = torch.ones(32, device=DEVICE), torch.zeros(32, device=DEVICE)
    for broken in (x.detach(), x.detach().nan_to_num(torch.inf)):
        with np.errstate(invalid="ignore"):  # a warning of the interpreter
            normed = GroupNormRelu.apply(broken, weight, bias, 4, 1e-5, True)
        assert torch.equal(normed.isnan(), F.relu(F.group_norm(broken, 4, weight, bias, 1e-5)).isnan())


def test_focal_loss_of_embeddings_that_are_too_short_to_be_scaled():
    embeddings = (1e-7 * F.normalize(random(6, 16), dim=1)).requires_grad_()
    text = F.normalize(random(5, 16, seed=2), dim=1)
    scale, bias = torch.tensor(20.0, device=DEVICE), torch.tensor(-3.0, device=DEVICE)
    labels = torch.arange(6, device=DEVICE) - 1
    loss = loss_of_every_class(embeddings, text, scale, bias, labels.clamp(max=4))
    exact = embeddings.detach().double().requires_grad_()
    logits = scale * (F.normalize(exact, dim=1, eps=EPSILON) @ text.double().T) + bias
    own = labels.clamp(max=4)[:, None] == torch.arange(5, device=DEVICE)
    expected = sigmoid_focal_loss(logits, own.double(), reduction="sum")
    (found,), (wanted,) = gradients(loss, embeddings), gradients(expected, exact)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("shape", [(2, 40, 6, 8), (1, 70, 5, 7), (1, 3, 2, 67), (1, 4, 1, 1), (0, 8, 4, 4)])
def test_halving(shape):
    x = random(*shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    measured = AvgPool2x2.apply(x)
    assert measured.is_contiguous(memory_format=torch.channels_last)
    if min(shape[2:]) < 2:  # torch refuses such a map
        assert measured.numel() == 0
        return
    expected = F.avg_pool2d(x, 2)
    torch.testing.assert_close(measured, expected)
    torch.testing.assert_close(gradients(measured, x), gradients(expected, x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(5, 6, 3, 3), (3, 130, 3, 3), (4, 7, 1, 1)])
def test_a_folded_norm(shape, memory_format):
    weight = random(*shape).contiguous(memory_format=memory_format).requires_grad_()
    norm = torch.nn.BatchNorm2d(shape[0]).to(DEVICE).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        for number, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            tensor.copy_(random(shape[0], seed=number + 1).abs() + 0.1)
    x = random(2, shape[1], 5, 5, seed=7).double()  # float64, since a GPU's float32 convolution rounds its inputs
    fixed = (norm.running_mean, norm.running_var, norm.eps, torch.float32)
    folded, bias = FoldNorm.apply(weight, norm.weight, norm.bias, *fixed)
    measured = F.conv2d(x, folded.double(), bias.double())
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    offset = norm.bias.double() - norm.running_mean.double() * scale
    expected = F.conv2d(x, weight.double()) * scale[:, None, None] + offset[:, None, None]
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-4)
    inputs = weight, norm.weight, norm.bias
    torch.testing.assert_close(gradients(measured, *inputs), gradients(expected, *inputs), rtol=1e-3, atol=1e-3)
