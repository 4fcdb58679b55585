"""Cosines in bfloat16, with bounds on how far they are from exact ones.

Where a machine multiplies bfloat16 matrices many times faster than float32 ones, the bounds tell which (point, class)
pairs may be among the best, and only those few are computed exactly.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovd.model.similarity import TextClassifier
from ovd.precision import fast_low_precision

HALF_STEP = 1.01 * 2**-8
"""Largest relative error of rounding to bfloat16; the rest is for sums, which are in float32."""
MIN_COSINES = 2**20
"""With fewer, exact ones take no longer."""


@dataclass(frozen=True)
class RoughCosines:
    """Cosines of P points with C classes, and their errors."""

    values: Float[Tensor, "P C"]
    error: Float[Tensor, " P"]
    """The largest error of a point's cosines, without `relative`."""
    relative: float
    """The largest relative error, of the values' own rounding."""

    @classmethod
    def exact(cls, cosines: Float[Tensor, "P C"]) -> "RoughCosines":
        """Cosines without an error."""
        return cls(cosines, cosines.new_zeros(len(cosines)), 0.0)

    @classmethod
    def of(cls, embeddings: Float[Tensor, "P D"], classifier: TextClassifier) -> "RoughCosines":
        """
        Args:
            embeddings: unit rows.
        """
        rounded = embeddings.bfloat16()
        text, error_of_text = classifier.rounded
        error = torch.linalg.vector_norm(embeddings - rounded, dim=1) + (1 + HALF_STEP) * error_of_text
        values = rounded @ text.T
        # The relative error is of values of at most 1, before they are lowered.
        if classifier.lowered is None:
            return cls(values, error, HALF_STEP)
        return cls(values.float() - classifier.lowered, error + HALF_STEP, 0.0)

    def at_least(self, values: Float[Tensor, "P N"]) -> Float[Tensor, "P N"]:
        """Lower bounds on the exact cosines of each point's values."""
        return values - self._margin(values, self.error[:, None])

    def at_most(self, values: Float[Tensor, "P N"]) -> Float[Tensor, "P N"]:
        """Upper bounds on them."""
        return values + self._margin(values, self.error[:, None])

    def at_most_of(self, rows: Int[Tensor, "*N"], classes: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Upper bounds on the exact cosines of some pairs."""
        values = self.values[rows, classes].float()
        return values + self._margin(values, self.error[rows])

    def _margin(self, values: Float[Tensor, "*N"], error: Float[Tensor, "..."]) -> Float[Tensor, "*N"]:
        return error + self.relative * values.abs()


def pays_off(num_points: int, classifier: TextClassifier) -> bool:
    """Whether rough cosines first, and exact ones of a few pairs then, are faster: on a CPU with fast bfloat16.

    A GPU has exact ones from bfloat16 products (similarity.py).
    """
    device = classifier.text.device
    return num_points * len(classifier) >= MIN_COSINES and device.type == "cpu" and fast_low_precision(device)
