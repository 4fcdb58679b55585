"""The latest result of a computation is reused for the same tensors and computed again for others."""

import torch

from ovd.model.last_result import LastResult


def test_it_is_computed_once_for_the_same_tensors_and_again_for_others() -> None:
    calls = []
    one, other = torch.zeros(2), torch.zeros(2)
    result = LastResult[int]()

    def of(*sources: torch.Tensor) -> int:
        return result.get_or_compute(sources, lambda: calls.append(sources) or len(calls))  # type: ignore[func-returns-value]

    assert [of(one), of(one), of(other), of(one, other), of(one)] == [1, 1, 2, 3, 4]


def test_what_was_written_to_counts_as_another() -> None:
    rows, result = torch.zeros(2), LastResult[float]()
    assert result.get_or_compute([rows], lambda: float(rows.sum())) == 0
    rows.copy_(torch.ones(2))
    assert result.get_or_compute([rows], lambda: float(rows.sum())) == 2


def test_nothing_is_kept_of_what_learns_or_has_no_version() -> None:
    learned, result = torch.zeros(2, requires_grad=True), LastResult[int]()
    with torch.inference_mode():
        inferred = torch.zeros(2)
    for source in (learned, inferred):
        numbers = iter((1, 2))
        assert [result.get_or_compute([source], lambda: next(numbers)) for _ in range(2)] == [1, 2]  # noqa: B023


def test_what_learned_meanwhile_is_computed_again() -> None:
    """A result is computed again after training, even if no tensor version shows it, as with fused optimizers."""
    scale, result = torch.zeros(2), LastResult[float]()

    def total() -> float:
        return result.get_or_compute([scale], lambda: float(scale.detach().sum()))

    assert total() == 0
    scale.requires_grad_(True)
    assert total() == 0
    scale.data.add_(1)
    scale.requires_grad_(False)
    assert total() == 2
