"""ConvNeXt blocks with Triton kernels compute what timm's do; without a GPU, they run in Triton's interpreter."""

import copy
import os

import pytest
import timm
import torch
from timm.layers import GlobalResponseNormMlp
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")

from ovd import kernels
from ovd.clip.convnext import FusedBlock, FusedLayerNorm2d, fuse_convnext
from ovd.kernels.depthwise import DepthwiseShortcut
from ovd.kernels.gelu import BiasGelu
from ovd.kernels.layer_norm import LayerNorm
from ovd.kernels.residual import ScaledResidual

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype).requires_grad_()


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, random(*output.shape, seed=9).detach().to(output.dtype))


@pytest.mark.parametrize("shape", [(2, 3, 5, 24), (70, 128), (1, 1), (3, 96), (0, 8)])
def test_layer_norm(shape):
    x = (random(*shape) * 3 + 1).detach().requires_grad_()
    weight, bias = random(shape[-1], seed=1), random(shape[-1], seed=2)
    measured = LayerNorm.apply(x, weight, bias, 1e-6, torch.float32)
    expected = F.layer_norm(x, shape[-1:], weight, bias, 1e-6)
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-5)
    inputs = x, weight, bias
    torch.testing.assert_close(gradients(measured, *inputs), gradients(expected, *inputs), rtol=1e-3, atol=1e-4)


def test_layer_norm_in_low_precision_is_near():
    x, weight, bias = random(40, 64, dtype=torch.bfloat16), random(64, seed=1), random(64, seed=2)
    measured = LayerNorm.apply(x, weight, bias, 1e-6, torch.bfloat16)
    assert measured.dtype == torch.bfloat16
    expected = F.layer_norm(x.double(), (64,), weight.double(), bias.double(), 1e-6)
    torch.testing.assert_close(measured.double(), expected, rtol=1e-2, atol=1e-2)
    for found, wanted in zip(gradients(measured, x, weight, bias), gradients(expected, x, weight, bias), strict=True):
        assert (found.double() - wanted.double()).norm() < 1e-2 * wanted.double().norm()


@pytest.mark.parametrize("shape", [(2, 5, 7, 24), (100, 70), (1, 1)])
def test_bias_and_gelu(shape):
    x, bias = random(*shape), random(shape[-1], seed=1)
    measured, expected = BiasGelu.apply(x, bias), F.gelu(x + bias)
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(measured, x, bias), gradients(expected, x, bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 7, 24), (3, 9, 11, 70), (1, 1, 1, 1)])
def test_scaled_residual(shape):
    x, shortcut = random(*shape), random(*shape, seed=1)
    bias, gain = random(shape[-1], seed=2), random(shape[-1], seed=3)
    factor = torch.tensor([1.25, 0.0, 1.0][: shape[0]], device=DEVICE)
    measured = ScaledResidual.apply(x, bias, gain, factor, shortcut)
    expected = shortcut + (x + bias) * gain * factor[:, None, None, None]
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-6)
    inputs = x, bias, gain, shortcut
    torch.testing.assert_close(gradients(measured, *inputs), gradients(expected, *inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [1, 3, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [(2, 5, 9, 40), (1, 1, 1, 3), (1, 9, 4, 70)])
def test_depthwise_convolution_with_shortcut(shape, window):
    x, weight, bias = random(*shape), random(shape[-1], 1, window, window, seed=1), random(shape[-1], seed=2)
    out, shortcut = DepthwiseShortcut.apply(x, weight, bias)
    assert torch.equal(shortcut, x)
    doubles = [value.detach().double().requires_grad_() for value in (x, weight, bias)]  # a GPU rounds float32 inputs
    image, taps, offset = doubles
    expected = F.conv2d(image.permute(0, 3, 1, 2), taps, offset, padding=window // 2, groups=shape[-1])
    expected = expected.permute(0, 2, 3, 1)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    found = gradients(out * 2 + shortcut.square(), x, weight, bias)
    wanted = gradients(expected * 2 + image.square(), *doubles)
    for measured, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(measured.double(), reference, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_a_convnext_is_the_same(drop_path, monkeypatch):
    """A whole ConvNeXt gives the same outputs and gradients with kernels; its stochastic depth draws as timm's does."""
    torch.manual_seed(0)
    plain = timm.create_model(
        "convnext_atto", depths=(1, 1, 1, 2), dims=(8, 16, 24, 40), num_classes=0, global_pool="", conv_mlp=False,
        ls_init_value=0.5, drop_path_rate=drop_path,
    )  # fmt: skip
    plain = plain.to(DEVICE).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fuse_convnext(fused)
    assert sum(type(module) is FusedBlock for module in fused.modules()) == 5
    assert sum(type(module) is FusedLayerNorm2d for module in fused.modules()) == 5
    images = random(3, 3, 32, 64).detach().contiguous(memory_format=torch.channels_last)
    found = {}
    for name, model in {"plain": plain, "fused": fused}.items():
        monkeypatch.setattr(kernels, "supports", lambda x, fuses=name == "fused": fuses)
        torch.manual_seed(1)
        output = model.train()(images)
        output.backward(random(*output.shape, seed=2).detach())
        of_parameters = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        found[name] = output.detach(), of_parameters
    torch.testing.assert_close(found["fused"][0], found["plain"][0], rtol=1e-3, atol=1e-4)
    for key, gradient in found["plain"][1].items():
        assert (found["fused"][1][key] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-7, key


@pytest.mark.parametrize(
    "options",
    [
        {"conv_mlp": True},
        {"use_grn": True},
        {"ls_init_value": None},
        {"stride": 2},
        {"dilation": 2},
        {"kernel_size": 4},
        {"act_layer": "gelu_tanh"},
    ],
)
def test_other_blocks_are_left_as_they_are(options):
    block = ConvNeXtBlock(8, **options)
    fuse_convnext(block)
    assert type(block) is ConvNeXtBlock
    assert not options.get("use_grn") or type(block.mlp) is GlobalResponseNormMlp
