import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ovd.text.bank import TextBank, build_bank
from ovd.text.encoder import encode_classes, encode_texts

NAMES = ["umbrella", "chess_king_(outlined)", "anchor"]
SYNONYMS = [("umbrella", "parasol"), (), ("anchor", "ship_anchor")]
TEMPLATES = ("{}", "a photo of {article} {}")


@pytest.fixture
def bank(untrained_clip, tmp_path):
    return build_bank(untrained_clip, NAMES, SYNONYMS, TEMPLATES, num_synonyms=0, folder=tmp_path)


def test_rows_equal_the_text_tower(bank, untrained_clip):
    rows = bank.rows(np.array([2, 0]), np.array([1, 0]))
    expected = encode_texts(untrained_clip, ["a photo of an anchor", "umbrella"])
    torch.testing.assert_close(rows, expected, atol=2e-3, rtol=0)  # float16 on disk


def test_rows_read_by_position_equal_the_whole_file(bank):
    variants = F.normalize(load_file(bank.path)["variants"].float(), dim=-1)
    classes, choice = np.meshgrid(np.arange(3), np.arange(2), indexing="ij")
    assert torch.equal(bank.rows(classes.ravel(), choice.ravel()), variants.reshape(6, -1))


def test_rows_of_no_class(bank):
    assert bank.rows(np.array([], np.int64), np.array([], np.int64)).shape == (0, bank.dim)


def test_same_inputs_open_the_same_file_and_others_another(bank, untrained_clip, tmp_path):
    again = build_bank(untrained_clip, NAMES, SYNONYMS, TEMPLATES, num_synonyms=0, folder=tmp_path)
    assert again.path == bank.path
    with torch.no_grad():
        untrained_clip.model.token_embedding.weight[0] += 1
    other_tower = build_bank(untrained_clip, NAMES, SYNONYMS, TEMPLATES, num_synonyms=0, folder=tmp_path)
    assert other_tower.path != bank.path


def test_image_tower_does_not_change_the_bank(bank, untrained_clip, tmp_path):
    with torch.no_grad():
        untrained_clip.model.visual.head.proj.weight.add_(1)
    again = build_bank(untrained_clip, NAMES, SYNONYMS, TEMPLATES, num_synonyms=0, folder=tmp_path)
    assert again.path == bank.path


def test_synonyms_become_variants_and_every_class_has_as_many(untrained_clip, tmp_path):
    bank = build_bank(untrained_clip, NAMES, [("parasol",), (), ()], ("{}",), num_synonyms=1, folder=tmp_path)
    assert bank.num_variants == 2
    expected = encode_texts(untrained_clip, ["umbrella", "parasol", "chess king (outlined)", "chess king (outlined)"])
    rows = bank.rows(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    torch.testing.assert_close(rows, expected, atol=2e-3, rtol=0)


def test_a_name_among_its_own_synonyms_counts_once(untrained_clip, tmp_path):
    synonyms: list[tuple[str, ...]] = [("umbrella", "parasol", "brolly")]
    bank = build_bank(untrained_clip, ["umbrella"], synonyms, ("{}",), num_synonyms=2, folder=tmp_path)
    expected = encode_texts(untrained_clip, ["umbrella", "parasol", "brolly"])
    torch.testing.assert_close(bank.rows(np.zeros(3, np.int64), np.arange(3)), expected, atol=2e-3, rtol=0)


def test_sampling_is_a_function_of_the_generator_and_noise_keeps_unit_length(bank):
    classes = torch.tensor([0, 1, 2] * 20)
    draw = [bank.sample(classes, generator=torch.Generator().manual_seed(3), noise=0.5) for _ in range(2)]
    assert torch.equal(draw[0], draw[1])
    torch.testing.assert_close(draw[0].norm(dim=-1), torch.ones(60))
    clean = bank.sample(classes, generator=torch.Generator().manual_seed(3))
    angle = (draw[0] * clean).sum(-1)
    assert 0.8 < angle.mean() < 0.95  # cosine of a unit vector with a random one of half its length added: 0.89


def test_all_variants_are_drawn(bank):
    rows = bank.sample(torch.zeros(64, dtype=torch.int64), generator=torch.Generator().manual_seed(0))
    assert len(torch.unique(rows, dim=0)) == bank.num_variants


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10" + bytes(7) + b'{"no": "bank"}  '])
def test_a_file_that_is_no_bank_is_refused(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.safetensors is not a text bank"):
        TextBank(path)


def test_a_cut_bank_is_refused(bank):
    content = bank.path.read_bytes()
    bank.path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match="damaged text bank"):
        TextBank(bank.path)


def test_class_rows_are_renormalised_means_over_templates(untrained_clip):
    rows = encode_classes(untrained_clip, ["umbrella", "anchor"], TEMPLATES)
    for name, row in zip(("umbrella", "anchor"), rows, strict=True):
        mean = encode_texts(untrained_clip, [name, f"a photo of an {name}"]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm())
    assert encode_classes(untrained_clip, [], TEMPLATES).shape == (0, rows.shape[1])
