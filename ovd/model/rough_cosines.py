"""Cosines in bfloat16, with bounds on how far they are from exact ones.

Where a machine multiplies bfloat16 matrices many times faster than float32 ones, the bounds tell which (point, class)
pairs may be among the best, and only those few are computed exactly.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ovd.model.similarity import TextClassifier
from ovd.precision import fast_low_precision

HALF_STEP = 1.01 * 2**-8
"""Largest relative error of rounding to bfloat16; the rest is for sums, which are in float32."""
COSINE_ROUNDING = 1e-6
"""What a bound on cosines is lowered by: it is computed in float32, as they are."""
MIN_COSINES = 2**20
"""With fewer, exact ones take no longer."""


@dataclass(frozen=True)
class RoughCosines:
    """Cosines of P points with C classes, and their errors."""

    values: Float[Tensor, "P M"]
    """Dot products, that is cosines times `lengths`. Columns beyond the C classes are padding, negative infinity."""
    lengths: Float[Tensor, " P"]
    error: Float[Tensor, " P"]
    """The largest error of a point's cosines, without `relative`."""
    relative: float
    """The largest relative error, of the values' own rounding."""

    @classmethod
    def exact(cls, cosines: Float[Tensor, "P C"]) -> "RoughCosines":
        """Cosines without an error."""
        return cls(cosines, cosines.new_ones(len(cosines)), cosines.new_zeros(len(cosines)), 0.0)

    @classmethod
    def of(
        cls, embeddings: Float[Tensor, "P D"], lengths: Float[Tensor, " P"], classifier: TextClassifier
    ) -> "RoughCosines":
        """The cosines of embeddings with all rows of a classifier.

        Args:
            lengths: of the embeddings.
        """
        rounded = embeddings.bfloat16()
        error = ((1 + HALF_STEP) * classifier.rounded.error).expand_as(lengths)
        if embeddings.dtype != torch.bfloat16:
            error = error + torch.linalg.vector_norm(embeddings - rounded, dim=1) / lengths
        values = classifier.rounded.products(rounded)
        # The relative error is of values of at most 1, before they are lowered.
        if classifier.name_penalty is None:
            return cls(values, lengths, error, HALF_STEP)
        cosines = values.float().div_(lengths[:, None])
        cosines[:, : len(classifier)] -= classifier.name_penalty
        return cls(cosines, torch.ones_like(lengths), error + HALF_STEP, 0.0)

    def exact_at_least(self, values: Float[Tensor, "P N"]) -> Float[Tensor, "P N"]:
        """Lower bounds on the exact cosines of each point's values."""
        cosines = values / self.lengths[:, None]
        return cosines - self.error[:, None] - self.relative * cosines.abs()

    def values_needed(self, cosines: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """For each point, the lowest entry of `values` that a pair with at least this exact cosine can have."""
        rough = cosines - self.error
        return self.lengths * rough / (1 + self.relative * rough.sign()) - self.lengths * COSINE_ROUNDING


def pays_off(num_points: int, classifier: TextClassifier) -> bool:
    """Whether rough cosines first, and exact ones of a few pairs then, are faster: on a CPU with fast bfloat16.

    A GPU has exact ones from bfloat16 products (similarity.py).
    """
    device = classifier.text.device
    return num_points * len(classifier) >= MIN_COSINES and device.type == "cpu" and fast_low_precision(device)
