"""oneDNN's layouts of convolution weights on a CPU.

oneDNN needs a weight in blocks, and torch reorders it in every call, which takes as long as a small convolution itself.
The layout depends on the input's shape, so it is kept for shapes that occur again.
"""

import platform
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ovd.precision import fast_low_precision


class WeightLayouts:
    """The layouts of a weight for the last few shapes of its input."""

    def __init__(self, num_shapes: int):
        """
        Args:
            num_shapes: number of input shapes that take turns; a layout is kept for each.
        """
        self.num_shapes = num_shapes
        self.kept: dict[torch.Size, Tensor | None] = {}

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """Copy without the kept layouts, since a tensor in oneDNN's layout cannot be copied."""
        return type(self), (self.num_shapes,)

    def weight_for(self, shape: torch.Size, weight: Tensor, reorder: Callable[[], Tensor]) -> Tensor:
        """Return the weight, in oneDNN's layout from the second input of a shape on.

        Args:
            shape: shape of the input.
            weight: the same tensor in every call.
            reorder: function that returns the weight in oneDNN's layout for this shape.
        """
        layout = self.kept.get(shape)
        if layout is None:
            if shape in self.kept:
                with torch.inference_mode(False):
                    layout = reorder()
            others = [item for item in self.kept.items() if item[0] != shape]
            self.kept = dict([*others, (shape, layout)][-self.num_shapes :])
        return weight if layout is None else layout


@cache
def has_prepacked_ops(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's operations for prepacked weights, which torch.compile uses, too, and this CPU is fast
    in this dtype with the instructions that oneDNN may use (ONEDNN_MAX_CPU_ISA)."""
    onednn = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(onednn, "_reorder_convolution_weight"):
        return False
    if dtype == torch.bfloat16:
        return fast_low_precision(torch.device("cpu")) and onednn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 and platform.machine() in ("x86_64", "AMD64")
