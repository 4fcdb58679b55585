"""ConvNeXt blocks (Liu et al., arXiv:2201.03545) with few passes over the feature maps on a GPU.

torch's autocast computes layer norms and layer scales in float32 and keeps the shortcuts in float32, so that copies
take most of a block's time. Here maps stay in the precision of the step, and sums are computed in float32.
"""

import torch
from jaxtyping import Float
from timm.layers import GELU, LayerNorm, LayerNorm2d, Mlp
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ovd import kernels
from ovd.precision import product_dtype


class FusedLayerNorm2d(LayerNorm2d):
    """A layer norm over the channels of a feature map, fused on a GPU."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        if kernels.supports_map(x):
            return _normalize(x.permute(0, 2, 3, 1), self).permute(0, 3, 1, 2)
        return super().forward(x)


class FusedBlock(ConvNeXtBlock):
    """A block with a depthwise convolution of stride 1, linear layers, exact GELU and layer scale, fused on a GPU."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        if not kernels.supports_map(x):
            return super().forward(x)
        from ovd.kernels.depthwise import DepthwiseShortcut
        from ovd.kernels.gelu import BiasGelu
        from ovd.kernels.residual import ScaledResidual

        convolution, first, last = self.conv_dw, self.mlp.fc1, self.mlp.fc2
        rows = x.permute(0, 2, 3, 1).to(product_dtype(x))
        out, shortcut = DepthwiseShortcut.apply(rows, convolution.weight, convolution.bias)
        out = BiasGelu.apply(F.linear(_normalize(out, self.norm), first.weight), first.bias)
        factor = self.drop_path(torch.ones(len(x), 1, 1, 1, device=x.device)).flatten()
        out = ScaledResidual.apply(F.linear(out, last.weight), last.bias, self.gamma, factor, shortcut)
        return out.permute(0, 3, 1, 2)


def fuse_convnext(trunk: nn.Module) -> None:
    """Replace the computation of all blocks and norms of a ConvNeXt that have a fused form, in place."""
    for module in trunk.modules():
        if type(module) is ConvNeXtBlock and _can_be_fused(module):
            module.__class__ = FusedBlock
        elif type(module) is LayerNorm2d:
            module.__class__ = FusedLayerNorm2d


def _can_be_fused(block: ConvNeXtBlock) -> bool:
    convolution, mlp = block.conv_dw, block.mlp
    side = convolution.kernel_size[0]
    is_square = convolution.kernel_size == (side, side) and side % 2 == 1
    keeps_size = convolution.padding == (side // 2, side // 2) and convolution.stride == convolution.dilation == (1, 1)
    is_mlp = type(mlp) is Mlp and type(mlp.fc1) is nn.Linear and type(mlp.act) is GELU
    has_all = convolution.bias is not None and block.gamma is not None and type(block.norm) is LayerNorm
    return is_square and keeps_size and is_mlp and has_all


def _normalize(rows: Float[Tensor, "B h w C"], norm: nn.LayerNorm) -> Float[Tensor, "B h w C"]:
    from ovd.kernels.layer_norm import LayerNorm as Normalize

    return Normalize.apply(rows.contiguous(), norm.weight, norm.bias, norm.eps, product_dtype(rows))
