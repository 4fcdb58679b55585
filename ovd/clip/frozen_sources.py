"""Whether what was computed from tensors may be kept, and still is what they give."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


def may_be_kept(sources: Sequence[Tensor]) -> bool:
    """Whether what is computed from these tensors may be kept for the next call.

    Not from those that learn, since fused optimizers change them without a sign (ovd's own step gives one, compiled or
    not), nor from those of inference mode, which have no versions.
    """
    return not any(source.requires_grad or source.is_inference() for source in sources)


@dataclass(frozen=True)
class Sources:
    """Tensors that something was computed from, as they were."""

    tensors: tuple[Tensor, ...]
    states: list[tuple[int, int]]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Sources":
        """These tensors as they are now."""
        return cls(tuple(tensors), _states(tensors))

    def are(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, and nobody has moved them or written to them since."""
        return (
            len(self.tensors) == len(tensors)
            and all(map(operator.is_, self.tensors, tensors))
            and self.states == _states(tensors)
        )


def _states(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """What changes when a tensor is moved, or written to in place; not through `.data`, which torch does not count."""
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors]
