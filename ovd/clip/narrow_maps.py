"""Strided convolutions of maps so narrow that the output has a single column, as in coarse levels of a tall image.

On CPUs with AMX, oneDNN reads beyond such maps in bfloat16: the result, or the gradient of the weight, is wrong and may
not be finite (seen in torch 2.10 and 2.14). `convolve` pads the map with more zeros until the output has two columns,
which oneDNN computes correctly, and drops the second.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ovd.precision import product_dtype


def convolve(
    convolution: nn.Conv2d,
    x: Float[Tensor, "B C h w"],
    weight: Float[Tensor, "K ..."],
    bias: Float[Tensor, " K"] | None,
) -> Float[Tensor, "B K H W"]:
    """Apply a convolution with another weight and bias, correctly for maps of any width."""
    if not is_narrow(convolution, x):
        return convolution._conv_forward(x, weight, bias)
    widened = F.pad(x, (0, _width_of_two(convolution) - x.shape[-1]))
    out = convolution._conv_forward(widened, weight, bias)[..., :1]
    return out.contiguous(memory_format=torch.channels_last)


def is_narrow(convolution: nn.Conv2d, x: Float[Tensor, "B C h w"]) -> bool:
    """Whether this is a strided, padded convolution in bfloat16 on a CPU whose output has one column."""
    if x.device.type != "cpu" or convolution.stride[1] == 1 or convolution.padding_mode != "zeros":
        return False
    if isinstance(convolution.padding, str) or convolution.padding[1] == 0:
        return False
    return product_dtype(x) == torch.bfloat16 and x.shape[-1] < _width_of_two(convolution)


def _width_of_two(convolution: nn.Conv2d) -> int:
    """Return the smallest width of a map for which the output has two columns."""
    kernel_size = convolution.dilation[1] * (convolution.kernel_size[1] - 1) + 1
    return kernel_size - 2 * int(convolution.padding[1]) + convolution.stride[1]
