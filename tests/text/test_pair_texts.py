"""Texts of several text banks as one vocabulary."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from ovd.text.bank import TextBank
from ovd.text.pair_texts import PairTexts, _hash

FIRST = 1000
COUNTS = [np.array([4, 0]), np.arange(0), np.array([9, 12, 1])]
"""Number of pairs of each text, by bank: 16 in all for the cat of two banks, 9 for the bird, 1 for x, none for the
dog."""


def bank(path, names: list[str], text_tower: str = "a tower", num_variants: int = 3) -> TextBank:
    import json

    generator = np.random.default_rng(len(names))
    variants = generator.normal(size=(len(names), num_variants, 8)).astype(np.float16)
    path.write_bytes(save({"variants": variants}, {"tower": text_tower, "names": json.dumps(names)}))
    return TextBank(path)


@pytest.fixture
def banks(tmp_path):
    return [
        bank(tmp_path / "0", ["a cat", "a dog"]),
        bank(tmp_path / "1", []),
        bank(tmp_path / "2", ["a bird", "a cat", "x"]),
    ]


def test_a_text_has_one_id_wherever_it_occurs(banks):
    texts = PairTexts(banks, COUNTS, first_id=FIRST)
    assert len(texts) == 4
    of_first, of_second, of_third = (texts.ids(number).tolist() for number in range(3))
    assert of_second == []
    assert of_first[0] == of_third[1]
    assert len({*of_first, *of_third}) == 4
    assert min(of_first + of_third) == FIRST
    assert max(of_first + of_third) == FIRST + 3


def test_texts_that_are_read_alike_are_one(tmp_path):
    named = bank(tmp_path / "0", ["A red Umbrella", "a red umbrella", "a  red\u00a0umbrella", "salt &amp; pepper"])
    texts = PairTexts([named], [np.ones(4, np.int64)], first_id=FIRST)
    assert len(texts) == 2
    assert len(set(texts.ids(0)[:3].tolist())) == 1


def test_samples_are_variants_of_the_text_and_all_of_them_come(banks):
    texts = PairTexts(banks, COUNTS, first_id=FIRST)
    bird = int(texts.ids(2)[0])
    variants = banks[2].rows(np.zeros(3, np.int64), np.arange(3))
    generator = torch.Generator().manual_seed(0)
    drawn = texts.sample(torch.full((60,), bird), generator=generator)
    matches = (drawn[:, None] == variants[None]).all(dim=2)
    assert matches.sum(dim=1).tolist() == [1] * 60
    assert matches.any(dim=0).all()
    mixed = texts.sample(torch.tensor([bird, int(texts.ids(0)[1])]), generator=generator)
    of_dog = banks[0].rows(np.ones(3, np.int64), np.arange(3))
    assert (mixed[1] == of_dog).all(dim=1).any()
    assert texts.sample(torch.empty(0, dtype=torch.int64), generator=generator).shape == (0, 8)


def test_noise_keeps_unit_length(banks):
    texts = PairTexts(banks, COUNTS, first_id=FIRST)
    ids = torch.from_numpy(texts.ids(0))
    clean = texts.sample(ids, generator=torch.Generator().manual_seed(0))
    noisy = texts.sample(ids, generator=torch.Generator().manual_seed(0), noise=0.5)
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(2))
    assert (noisy * clean).sum(dim=1).max() < 0.999


def test_banks_of_two_towers_are_refused(tmp_path, banks):
    with pytest.raises(ValueError, match="different text towers"):
        PairTexts(
            [banks[0], bank(tmp_path / "3", ["x"], text_tower="another")],
            [np.ones(2, np.int64), np.ones(1, np.int64)],
            first_id=0,
        )


def test_texts_are_drawn_by_the_root_of_their_number_of_pairs(banks):
    texts = PairTexts(banks, COUNTS, first_id=FIRST)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([texts.draw(1, generator) for _ in range(4000)])
    bird, cat, x = texts.ids(2).tolist()
    shares = {text: (drawn == text).double().mean().item() for text in (bird, cat, x)}
    assert shares == pytest.approx({bird: 3 / 8, cat: 4 / 8, x: 1 / 8}, abs=0.03)
    assert sum(shares.values()) == pytest.approx(1)
    many = texts.draw(500, generator).tolist()
    assert many == sorted({bird, cat, x})
    assert texts.draw(0, generator).tolist() == []
    assert PairTexts([banks[1]], [np.arange(0)], first_id=FIRST).draw(5, generator).tolist() == []


def test_hashes_of_many_texts_differ():
    assert len({_hash(str(number)) for number in range(5000)}) == 5000
