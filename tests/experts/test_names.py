"""The choice of the expert that answers a query."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F

from ovd.experts.names import ExpertNames, fit_margin, route

BASE = F.normalize(torch.eye(6)[:3], dim=1)


def near(row: torch.Tensor, other: torch.Tensor, weight: float) -> torch.Tensor:
    return F.normalize(row + weight * other, dim=-1)


def expert(*rows: torch.Tensor, margin: float = 0.1) -> ExpertNames:
    return ExpertNames(tuple(map(str, range(len(rows)))), torch.stack(rows), BASE, margin)


ONE, OTHER = torch.eye(6)[3], torch.eye(6)[4]


def rows_of(text: torch.Tensor, *experts: ExpertNames, nearest: bool = False) -> list[list[int]]:
    return [rows.tolist() for rows in route(text, experts, nearest=nearest)]


def test_own_names_go_to_the_expert_and_all_others_to_the_base() -> None:
    text = torch.stack([BASE[0], ONE, near(ONE, OTHER, 0.3), torch.eye(6)[5]])
    assert rows_of(text, expert(ONE)) == [[0, 2, 3], [1]]


def test_a_name_of_two_experts_is_answered_by_both() -> None:
    text = torch.stack([ONE, OTHER])
    assert rows_of(text, expert(ONE), expert(OTHER, ONE)) == [[], [0], [0, 1]]


def test_an_experts_name_is_its_own_even_if_the_base_was_trained_on_it() -> None:
    assert rows_of(BASE[:1], expert(BASE[0])) == [[], [0]]


def test_near_queries_go_to_the_nearest_expert_if_asked_to_and_never_trained_names() -> None:
    query = near(ONE, OTHER, 0.4)
    text = torch.stack([query, BASE[1], near(BASE[0], ONE, 0.5), near(OTHER, ONE, 0.2)])
    assert rows_of(text, expert(ONE), expert(OTHER)) == [[0, 1, 2, 3], [], []]
    assert rows_of(text, expert(ONE), expert(OTHER), nearest=True) == [[1, 2], [0], [3]]
    assert rows_of(text, expert(ONE, margin=0.95), expert(OTHER), nearest=True) == [[1, 2], [], [0, 3]]


def test_a_trained_name_stays_with_the_base_whatever_the_margin() -> None:
    text = torch.stack([BASE[0], near(BASE[0], ONE, 0.5)])
    assert rows_of(text, expert(near(BASE[0], ONE, 0.2), margin=-0.5), nearest=True) == [[0], [1]]


def test_of_equally_good_margins_the_highest_is_taken() -> None:
    """The leads in ascending order are -0.5 and 0.1 of the base's names, -0.1 and 0.5 of the expert's, so margins below
    -0.1 leave one base name on the wrong side, and those above 0.1 one of the expert's."""
    cosines = torch.tensor([[1, 0.5, 0, 0.6], [0.5, 1, 0, 0], [0, 0, 1, 0.5], [0.6, 0, 0.5, 1]])
    rows = torch.linalg.cholesky(cosines)
    assert fit_margin(rows[:2], torch.arange(2), rows[2:]) == pytest.approx(0.3)


def test_no_query_is_lost_or_asked_twice_of_one_side() -> None:
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(50, 6, generator=generator), dim=1)
    asked = rows_of(text, expert(text[0], text[7]), expert(text[9]), nearest=True)
    assert sorted(chain(*asked)) == list(range(50))


def test_the_margin_separates_held_out_names_of_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)

    def around(center: torch.Tensor, count: int) -> torch.Tensor:
        return F.normalize(center + 0.25 * torch.randn(count, 6, generator=generator), dim=1)

    new, base = around(ONE, 40), around(BASE[0], 60)
    margin = fit_margin(new, torch.arange(40), base)
    names = ExpertNames((), new, base, margin)
    assert names.lead(around(ONE, 100)).gt(0).float().mean() > 0.95
    assert names.lead(around(BASE[0], 100)).gt(0).float().mean() < 0.05


def test_a_names_own_synonyms_do_not_count_where_it_is_held_out() -> None:
    """Synonyms of a held-out name are held out, too; here each name is given twice, and its twin would be at a cosine
    of 1."""
    new = F.normalize(torch.stack([torch.eye(6)[3], torch.eye(6)[4]]), dim=1)
    margin = fit_margin(new.repeat(2, 1), torch.tensor([0, 1, 0, 1]), BASE)
    assert margin == pytest.approx(fit_margin(new, torch.tensor([0, 1]), BASE), abs=1e-6)


def test_a_margin_without_names_of_the_base_is_finite() -> None:
    assert torch.isfinite(torch.tensor(fit_margin(torch.stack([ONE, OTHER]), torch.arange(2), torch.zeros(0, 6))))


@pytest.mark.parametrize("seed", range(5))
def test_no_margin_tells_the_two_sides_apart_better(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    new = F.normalize(torch.randn(6, 4, generator=generator) + torch.tensor([1.0, 0, 0, 0]), dim=1)
    base = F.normalize(torch.randn(9, 4, generator=generator) + torch.tensor([0, 0.5, 0, 0]), dim=1)
    within, across = (new @ new.T).fill_diagonal_(-1), new @ base.T
    lead_of_new = within.amax(dim=1) - across.amax(dim=1)
    lead_of_base = across.amax(dim=0) - (base @ base.T).fill_diagonal_(-1).amax(dim=1)

    def share(margin: float) -> float:
        return float((lead_of_new > margin).float().mean() + (lead_of_base <= margin).float().mean())

    best = max(share(margin) for margin in torch.linspace(-2, 2, 801).tolist())
    assert share(fit_margin(new, torch.arange(6), base)) >= best - 1e-6


def test_an_experts_own_name_goes_to_no_other_that_is_near() -> None:
    first, second = expert(ONE, margin=0.5), expert(near(ONE, OTHER, 0.4), margin=0.0)
    assert rows_of(ONE[None], first, second, nearest=True) == [[], [0], []]
