"""Cosines in bfloat16, with bounds on how far they are from exact ones.

Where a machine multiplies bfloat16 matrices many times faster than float32 ones, the bounds tell which (point, class)
pairs may be among the best, and only those few are computed exactly.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovd.model.similarity import TextClassifier, lengths
from ovd.precision import fast_low_precision

HALF_STEP = 1.01 * 2**-8
"""Largest relative error of rounding to bfloat16; the rest is for sums, which are in float32."""
MIN_COSINES = 2**20
"""With fewer, exact ones take no longer."""


@dataclass(frozen=True)
class RoughCosines:
    """Cosines of P points with C classes, and their errors."""

    values: Float[Tensor, "P C"]
    """Times `lengths`."""
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
    def of(cls, embeddings: Float[Tensor, "P D"], classifier: TextClassifier) -> "RoughCosines":
        """
        Args:
            embeddings: of any length.
        """
        rounded, scale = embeddings.bfloat16(), lengths(embeddings)
        text, error_of_text = classifier.rounded
        error = ((1 + HALF_STEP) * error_of_text).expand_as(scale)
        if embeddings.dtype != torch.bfloat16:
            error = error + torch.linalg.vector_norm(embeddings - rounded, dim=1) / scale
        values = rounded @ text.T
        # The relative error is of values of at most 1, before they are lowered.
        if classifier.lowered is None:
            return cls(values, scale, error, HALF_STEP)
        lowered = values.float().div_(scale[:, None]).sub_(classifier.lowered)
        return cls(lowered, torch.ones_like(scale), error + HALF_STEP, 0.0)

    def at_least(self, values: Float[Tensor, "P N"]) -> Float[Tensor, "P N"]:
        """Lower bounds on the exact cosines of each point's values."""
        cosines = values / self.lengths[:, None]
        return cosines - self._margin(cosines, self.error[:, None])

    def at_most(self, values: Float[Tensor, "P N"]) -> Float[Tensor, "P N"]:
        """Upper bounds on them."""
        cosines = values / self.lengths[:, None]
        return cosines + self._margin(cosines, self.error[:, None])

    def at_most_of(self, rows: Int[Tensor, "*N"], classes: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Upper bounds on the exact cosines of some pairs."""
        cosines = self.values[rows, classes].float() / self.lengths[rows]
        return cosines + self._margin(cosines, self.error[rows])

    def _margin(self, cosines: Float[Tensor, "*N"], error: Float[Tensor, "..."]) -> Float[Tensor, "*N"]:
        return error + self.relative * cosines.abs()


def pays_off(num_points: int, classifier: TextClassifier) -> bool:
    """Whether rough cosines first, and exact ones of a few pairs then, are faster: on a CPU with fast bfloat16.

    A GPU has exact ones from bfloat16 products (similarity.py).
    """
    device = classifier.text.device
    return num_points * len(classifier) >= MIN_COSINES and device.type == "cpu" and fast_low_precision(device)
