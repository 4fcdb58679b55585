"""Work done ahead in threads keeps its order, is bounded, and passes errors on."""

import time
from collections.abc import Iterator

import pytest

from ovd.threads import map_ahead


def test_results_come_in_order_whatever_takes_longest():
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 / (1 + item))
        return item * item

    assert list(map_ahead(slow_at_first, range(30), threads=4, ahead=8)) == [item * item for item in range(30)]
    assert list(map_ahead(slow_at_first, range(3), threads=4, ahead=8)) == [0, 1, 4]
    assert list(map_ahead(slow_at_first, [], threads=4, ahead=8)) == []


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (1, 5), (3, 5)])
def test_so_many_items_are_taken_ahead_and_no_more(threads, ahead):
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(12):
            taken.append(item)
            yield item

    for used, result in enumerate(map_ahead(lambda item: item, items(), threads=threads, ahead=ahead), start=1):
        assert result == used - 1
        assert len(taken) == min(12, used + ahead)
    assert used == 12


def test_an_error_comes_where_its_item_is():
    def inverse(item: int) -> float:
        return 1 / (3 - item)

    results = map_ahead(inverse, range(6), threads=2, ahead=4)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
