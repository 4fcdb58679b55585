"""Checks of whether a result computed from tensors may be kept, and whether a kept one is still valid."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


def is_cacheable(sources: Sequence[Tensor]) -> bool:
    """Whether a result computed from these tensors may be kept for the next call.

    It may not if one of them learns, since fused optimizers do not increase its version (ovd's own step does, compiled
    or not), nor if one is an inference tensor, which has no version.
    """
    return not any(source.requires_grad or source.is_inference() for source in sources)


@dataclass(frozen=True)
class TensorSnapshot:
    """Tensors that a result was computed from, with their states at that time."""

    tensors: tuple[Tensor, ...]
    states: list[tuple[int, int]]

    @classmethod
    def take(cls, tensors: Sequence[Tensor]) -> "TensorSnapshot":
        """Record these tensors with their present states."""
        return cls(tuple(tensors), _states(tensors))

    def matches(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, not moved or written to since."""
        return (
            len(self.tensors) == len(tensors)
            and all(map(operator.is_, self.tensors, tensors))
            and self.states == _states(tensors)
        )


def _states(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return address and version of each tensor: they change with moves and in-place writes, except through `.data`."""
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors]
