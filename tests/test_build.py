import json

import pytest
import torch

from ovd.build import build_class_bank, read_paraphrases
from ovd.config import BankConfig


def test_paraphrases_come_in_the_order_of_the_classes(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"anchor": ["holds a ship", "iron hook"], "unknown": ["something"]}))
    assert read_paraphrases(path, ["gear", "anchor"]) == [(), ("holds a ship", "iron hook")]


@pytest.mark.parametrize("content", ["", "[]", '{"anchor": "holds a ship"}', '{"anchor": [1]}', '{"anchor": 1}'])
def test_paraphrases_of_another_form_are_refused(tmp_path, content):
    path = tmp_path / "texts.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"texts\.json: needs JSON of the form"):
        read_paraphrases(path, ["anchor"])


def test_paraphrases_of_other_classes_are_refused(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text('{"gear": ["turns"]}')
    with pytest.raises(ValueError, match="texts about 1 classes, none of which is in the vocabulary"):
        read_paraphrases(path, ["anchor"])


def test_a_bank_file_stands_in_for_building_one(tiny_clip, tmp_path):
    names = ["anchor", "gear", "umbrella"]
    built = build_class_bank(BankConfig(cache=tmp_path), tiny_clip, names, [()] * 3)
    read = build_class_bank(BankConfig(file=built.path), tiny_clip, ["umbrella", "anchor"], [()] * 2)
    assert read.path == built.path
    generator = torch.Generator().manual_seed
    there, here = (
        bank.sample(torch.tensor(rows), generator=generator(0)) for bank, rows in ((built, [2, 0]), (read, [0, 1]))
    )
    assert torch.equal(there, here)
