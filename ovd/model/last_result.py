"""The latest result of a computation, kept while the tensors that it depends on stay as they are."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from ovd.clip.frozen_sources import Sources, may_be_kept

T = TypeVar("T")


class LastResult(Generic[T]):
    """Keeps one result, for calls again and again with the same tensors."""

    def __init__(self) -> None:
        self._kept: tuple[Sources, T] | None = None

    def of(self, sources: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """`compute()`, or what it gave before if these very tensors were the latest and nobody wrote to them since."""
        if not may_be_kept(sources):
            self._kept = None
            return compute()
        kept = self._kept  # another thread may change what is kept
        if kept is None or not kept[0].are(sources):
            self._kept = kept = (Sources.of(sources), compute())
        return kept[1]
