"""Text rows in bfloat16, for products whose largest error is known."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ovd.clip.onednn import WeightLayouts, has_prepacked_ops

ROW_MULTIPLE = 32
"""Number that the rows are padded to a multiple of, so that classes fall into groups of equal size."""
ROWS_PER_CHUNK = 1024
"""Number of rows whose rounding is measured at a time, so that they stay in a CPU's cache."""


class RoundedRows:
    """Text rows in bfloat16, with their largest rounding error."""

    def __init__(self, text: Float[Tensor, "C D"]):
        padding = (0, 0, 0, -len(text) % ROW_MULTIPLE)
        self.rows = F.pad(text.bfloat16(), padding)
        self.bias = F.pad(text.new_zeros(len(text), dtype=torch.bfloat16), padding[2:], value=-torch.inf)
        parts = zip(text.split(ROWS_PER_CHUNK), self.rows[: len(text)].split(ROWS_PER_CHUNK), strict=True)
        errors = [torch.linalg.vector_norm(part - other, dim=1).amax() for part, other in parts]
        self.error = torch.stack(errors).amax()
        """Largest length of the difference between an exact row and the rounded one."""
        self._layouts = WeightLayouts(1)

    def products(self, embeddings: Float[Tensor, "P D"]) -> Float[Tensor, "P M"]:
        """Compute the products of bfloat16 embeddings with the rows; the padding has negative infinity."""
        if self.rows.device.type != "cpu" or not has_prepacked_ops(torch.bfloat16):
            return torch.addmm(self.bias, embeddings, self.rows.T)
        onednn = torch.ops.mkldnn
        # The layout is the same for any number of embeddings except small ones, for which the operation changes it.
        any_number = embeddings.shape[1:]
        rows = self._layouts.weight_for(
            any_number, self.rows, lambda: onednn._reorder_linear_weight(self.rows, len(embeddings))
        )
        return onednn._linear_pointwise(embeddings, rows, self.bias, "none", [], "")
