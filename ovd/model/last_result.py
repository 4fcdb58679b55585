"""The latest result of a computation, kept while the tensors that it depends on do not change."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from ovd.clip.tensor_snapshot import TensorSnapshot, is_cacheable

T = TypeVar("T")


class LastResult(Generic[T]):
    """Cache of one result, for repeated calls with the same tensors."""

    def __init__(self) -> None:
        self._kept: tuple[TensorSnapshot, T] | None = None

    def get_or_compute(self, sources: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """Return `compute()`, or its last result if it was for the same tensors and they have not been written to."""
        if not is_cacheable(sources):
            self._kept = None
            return compute()
        kept = self._kept  # read once, since another thread may replace it
        if kept is None or not kept[0].matches(sources):
            self._kept = kept = (TensorSnapshot.take(sources), compute())
        return kept[1]
