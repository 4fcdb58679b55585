"""Cosines in bfloat16, with bounds on their errors.

Where a machine multiplies bfloat16 matrices many times faster than float32 ones, the bounds tell which (point, class)
pairs may be among the best, and only those few are computed exactly.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ovd.model.similarity import TextClassifier
from ovd.precision import fast_low_precision

BFLOAT16_ERROR = 1.01 * 2**-8
"""Largest relative error of rounding to bfloat16, 2**-8, with a margin for the sums, which are in float32."""
COSINE_ROUNDING = 1e-6
"""Number subtracted from bounds on cosines, since both are computed in float32."""
MIN_COSINES = 2**20
"""Minimum number of cosines for rough ones; fewer exact ones take no longer."""


@dataclass(frozen=True)
class RoughCosines:
    """Cosines of P points with C classes, and bounds on their errors."""

    values: Float[Tensor, "P M"]
    """Dot products: cosines times `lengths`. Columns beyond the C classes are padding, with negative infinity."""
    lengths: Float[Tensor, " P"]
    error: Float[Tensor, " P"]
    """Largest absolute error of a point's cosines, in addition to `relative`."""
    relative: float
    """Largest relative error, from rounding the values."""

    @classmethod
    def from_exact(cls, cosines: Float[Tensor, "P C"]) -> "RoughCosines":
        """Return exact cosines as rough ones without an error."""
        return cls(cosines, cosines.new_ones(len(cosines)), cosines.new_zeros(len(cosines)), 0.0)

    @classmethod
    def compute(
        cls, embeddings: Float[Tensor, "P D"], lengths: Float[Tensor, " P"], classifier: TextClassifier
    ) -> "RoughCosines":
        """Compute the rough cosines of embeddings with all rows of a classifier.

        Args:
            lengths: lengths of the embeddings.
        """
        rounded = embeddings.bfloat16()
        error = ((1 + BFLOAT16_ERROR) * classifier.rounded.error).expand_as(lengths)
        if embeddings.dtype != torch.bfloat16:
            error = error + torch.linalg.vector_norm(embeddings - rounded, dim=1) / lengths
        values = classifier.rounded.products(rounded)
        # Cosines of at most 1 have this relative error before the penalty is subtracted, so it becomes absolute.
        if classifier.name_penalty is None:
            return cls(values, lengths, error, BFLOAT16_ERROR)
        cosines = values.float().div_(lengths[:, None])
        cosines[:, : len(classifier)] -= classifier.name_penalty
        return cls(cosines, torch.ones_like(lengths), error + BFLOAT16_ERROR, 0.0)

    def exact_lower_bounds(self, values: Float[Tensor, "P N"]) -> Float[Tensor, "P N"]:
        """Compute lower bounds on the exact cosines of each point's values."""
        cosines = values / self.lengths[:, None]
        return cosines - self.error[:, None] - self.relative * cosines.abs()

    def min_values(self, cosines: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Compute, for each point, the lowest of `values` that a pair with at least this exact cosine can have."""
        rough = cosines - self.error
        return self.lengths * rough / (1 + self.relative * rough.sign()) - self.lengths * COSINE_ROUNDING


def rough_is_faster(num_points: int, classifier: TextClassifier) -> bool:
    """Return whether rough cosines, followed by exact ones of a few pairs, are faster: on a CPU with fast bfloat16.

    A GPU computes exact cosines from bfloat16 products (similarity.py).
    """
    device = classifier.text.device
    return num_points * len(classifier) >= MIN_COSINES and device.type == "cpu" and fast_low_precision(device)
