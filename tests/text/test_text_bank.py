"""The file of text embeddings: rows equal the text tower's, variants are repeatable, and other files are refused."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_texts import encode_texts
from safetensors.numpy import save
from safetensors.torch import load_file
from torch.nn import functional as F

from ovd.commands import text_bank
from ovd.text.bank import TextBank, build_bank, class_texts
from ovd.text.encoder import encode_classes, encode_tokens
from ovd.text.names import fill_template
from ovd.text.perturb import _residual_blocks, drop_tokens, tower_dropout
from ovd.text.sources import TextSources

NAMES = ["umbrella", "chess_king_(outlined)", "anchor"]
SYNONYMS = [("umbrella", "parasol"), (), ("anchor", "ship_anchor")]
TEMPLATES = ("{}", "a photo of {article} {}")


@pytest.fixture
def bank(untrained_clip, tmp_path):
    return build_bank(untrained_clip, NAMES, SYNONYMS, TextSources(), folder=tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(bank, untrained_clip, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    build_bank(untrained_clip, NAMES, SYNONYMS, TextSources(), folder=tmp_path)  # this bank exists already
    with pytest.raises(ValueError, match=r"the folder of text banks, cannot be written to; give another bank\.cache"):
        build_bank(untrained_clip, NAMES[:1], SYNONYMS[:1], TextSources(), folder=tmp_path)


def test_rows_equal_the_text_tower(bank, untrained_clip):
    rows = bank.rows(np.array([2, 0]), np.array([2, 0]))
    expected = encode_texts(untrained_clip, ["a photo of an anchor", "umbrella"])
    torch.testing.assert_close(rows, expected, atol=2e-3, rtol=0)  # rows are float16 on disk


def test_rows_read_by_position_equal_the_whole_file(bank):
    variants = F.normalize(load_file(bank.path)["variants"].float(), dim=-1)
    classes, choice = np.meshgrid(np.arange(3), np.arange(7), indexing="ij")
    assert torch.equal(bank.rows(classes.ravel(), choice.ravel()), variants.reshape(21, -1))


def test_rows_of_no_class(bank):
    assert bank.rows(np.array([], np.int64), np.array([], np.int64)).shape == (0, bank.variants.dim)


def test_same_inputs_open_the_same_file_and_others_another(bank, untrained_clip, tmp_path):
    written = bank.path.stat()
    again = build_bank(untrained_clip, NAMES, SYNONYMS, TextSources(), folder=tmp_path)
    assert again.path == bank.path
    assert (again.path.stat().st_ino, again.path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    with torch.no_grad():
        untrained_clip.model.token_embedding.weight[0] += 1
    other_tower = build_bank(untrained_clip, NAMES, SYNONYMS, TextSources(), folder=tmp_path)
    assert other_tower.path != bank.path


def test_other_names_texts_or_sources_make_another_file(untrained_clip, tmp_path):
    plain: dict[str, Any] = {"templates": "none", "num_synonyms": 1}
    random = {**plain, "draws": 2, "token_drop": 0.1}
    spaced = [name.replace("_", " ") for name in NAMES]  # other names with the same texts
    banks = [
        build_bank(untrained_clip, names, synonyms, TextSources(**sources), folder=tmp_path, paraphrases=paraphrases)
        for names, synonyms, sources, paraphrases in [
            (NAMES, SYNONYMS, plain, None),
            (spaced, SYNONYMS, plain, None),
            (NAMES, [("brolly",), (), ()], plain, None),
            (NAMES, SYNONYMS, plain, [("keeps rain off",), (), ()]),
            (NAMES, SYNONYMS, {**plain, "templates": "short"}, None),
            (NAMES, SYNONYMS, random, None),
            (NAMES, SYNONYMS, {**random, "draws": 3}, None),
            (NAMES, SYNONYMS, {**random, "token_drop": 0.2}, None),
            (NAMES, SYNONYMS, {**random, "tower_dropout": 0.1}, None),
            (NAMES, SYNONYMS, {**random, "seed": 1}, None),
        ]
    ]
    assert len({bank.path for bank in banks}) == len(banks)


def test_a_seed_makes_another_file_only_where_something_is_random(bank, untrained_clip, tmp_path):
    again = build_bank(untrained_clip, NAMES, SYNONYMS, TextSources(seed=7), folder=tmp_path)
    assert again.path == bank.path


def test_the_backbone_does_not_change_the_bank(bank, untrained_clip, tmp_path):
    with torch.no_grad():
        untrained_clip.model.visual.head.proj.weight.add_(1)
    again = build_bank(untrained_clip, NAMES, SYNONYMS, TextSources(), folder=tmp_path)
    assert again.path == bank.path


def test_synonyms_become_variants_and_every_class_has_as_many(untrained_clip, tmp_path):
    bank = build_bank(
        untrained_clip, NAMES, [("parasol",), (), ()], TextSources(templates="none", num_synonyms=1), folder=tmp_path
    )
    assert bank.variants.num_variants == 2
    expected = encode_texts(untrained_clip, ["umbrella", "parasol", "chess king (outlined)", "chess king (outlined)"])
    rows = bank.rows(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    torch.testing.assert_close(rows, expected, atol=2e-3, rtol=0)


def test_a_name_among_its_own_synonyms_counts_once(untrained_clip, tmp_path):
    synonyms: list[tuple[str, ...]] = [("umbrella", "parasol", "brolly")]
    bank = build_bank(
        untrained_clip, ["umbrella"], synonyms, TextSources(templates="none", num_synonyms=2), folder=tmp_path
    )
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
    assert len(torch.unique(rows, dim=0)) == bank.variants.num_variants


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        b"\x10" + bytes(7) + b'{"no": "bank"}  ',
        b"\x02" + bytes(7) + b"[]",
        b"\x04" + bytes(7) + b"null",
    ],
)
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
    last = np.array([len(NAMES) - 1]), np.array([bank.variants.num_variants - 1])
    assert bank.rows(np.array([0]), np.array([0])).shape == (1, bank.variants.dim)
    with pytest.raises(ValueError, match=rf"{bank.path.name} is too short"):  # opened before the cut
        bank.rows(*last)


def test_a_header_that_does_not_fit_its_rows_is_refused(bank):
    content = bank.path.read_bytes()
    bank.path.write_bytes(content.replace(b"[3, 7, ", b"[3, 6, ", 1))
    with pytest.raises(ValueError, match="damaged text bank"):
        TextBank(bank.path)


def test_a_bank_that_does_not_name_its_text_tower_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"variants": np.ones((1, 1, 4), np.float16)}, {"names": '["anchor"]'}))
    with pytest.raises(ValueError, match=r"other\.safetensors is not a text bank \('tower'\)"):
        TextBank(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ('["anchor", "bow", "gear"]', "classes: 2, names: 3, distinct: 3"),
        ('["anchor"]', "classes: 2, names: 1, distinct: 1"),
        ('["bow", "bow"]', "classes: 2, names: 2, distinct: 1"),
    ],
)
def test_a_bank_that_does_not_name_its_classes_one_by_one_is_refused(names, message, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"variants": np.ones((2, 1, 4), np.float16)}, {"tower": "", "names": names}))
    with pytest.raises(ValueError, match=rf"other\.safetensors is not a text bank \({message}\)"):
        TextBank(path)


def test_class_rows_are_renormalized_means_over_templates(untrained_clip):
    rows = encode_classes(untrained_clip, ["umbrella", "anchor"], TEMPLATES)
    for name, row in zip(("umbrella", "anchor"), rows, strict=True):
        mean = encode_texts(untrained_clip, [name, f"a photo of an {name}"]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm())
    assert encode_classes(untrained_clip, [], TEMPLATES).shape == (0, rows.shape[1])


def test_synonyms_count_like_the_name(untrained_clip):
    synonyms = [("umbrella", "sun_shade", "parasol"), ()]
    rows = encode_classes(untrained_clip, ["umbrella", "anchor"], ("{}", "a photo of a {}"), synonyms, 1)
    texts = ["umbrella", "a photo of a umbrella", "sun shade", "a photo of a sun shade"]
    mean = encode_texts(untrained_clip, texts).mean(dim=0)
    torch.testing.assert_close(rows[0], mean / mean.norm())
    torch.testing.assert_close(rows[1:], encode_classes(untrained_clip, ["anchor"], ("{}", "a photo of a {}")))


def test_random_sources_give_variants_that_differ_and_stay_near_their_text(tiny_clip, tmp_path):
    """The first draw is the text itself; dropout and dropped tokens change the others by more than float16's rounding,
    but keep them near their text."""
    for dropout, drop in ((0.02, 0.0), (0.0, 0.2), (0.02, 0.2)):
        sources = TextSources(templates="short", draws=8, tower_dropout=dropout, token_drop=drop)
        bank = build_bank(tiny_clip, NAMES, SYNONYMS, sources, folder=tmp_path)
        assert bank.variants.num_variants == 7 * 8
        of_photo = 2 * 8 + np.arange(8)  # rows of the third short template
        for row, name in enumerate(("umbrella", "chess king (outlined)", "anchor")):
            variants = bank.rows(np.full(8, row), of_photo)
            clean, other = encode_texts(
                tiny_clip, [fill_template("a photo of {article} {}", text) for text in (name, "gear")]
            )
            torch.testing.assert_close(variants[0], clean, atol=2e-3, rtol=0)
            assert (variants[1:] @ clean).min() < 0.98
            assert (variants[1:] @ clean).mean() > (variants[1:] @ other).mean() + 0.1


def test_random_sources_are_a_function_of_the_seed(tiny_clip, tmp_path):
    content = {}
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        sources = TextSources(draws=3, token_drop=0.2, tower_dropout=0.1, seed=seed)
        content[folder] = build_bank(tiny_clip, NAMES, SYNONYMS, sources, folder=tmp_path / folder).path.read_bytes()
    assert content["a"] == content["b"] != content["c"]


def test_dropout_ends_with_its_block(tiny_clip):
    before = encode_texts(tiny_clip, ["an anchor"])
    with tower_dropout(tiny_clip, 0.5, torch.Generator().manual_seed(0)):
        assert (encode_texts(tiny_clip, ["an anchor"]) - before).abs().max() > 0.01
    assert torch.equal(encode_texts(tiny_clip, ["an anchor"]), before)


def test_dropped_tokens_leave_the_rest_in_order_and_something_to_say(tiny_clip):
    texts = ["a photo of an outlined chess king", "anchor", ""]
    tokens = tiny_clip.tokenizer(texts)
    start, end = tiny_clip.tokenizer.sot_token_id, tiny_clip.tokenizer.eot_token_id
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for _ in range(50):
        for before, after in zip(tokens, drop_tokens(tokens, tiny_clip, 0.5, generator), strict=True):
            whole, kept = before[before != 0].tolist(), after[after != 0].tolist()
            assert after[: len(kept)].tolist() == kept  # no gaps before the end
            assert (kept[0], kept[-1]) == (start, end)
            assert len(kept) >= min(3, len(whole))
            rest = iter(whole)
            assert all(token in rest for token in kept)  # the kept tokens are a subsequence
            lengths.add(len(kept))
    assert len(lengths) > 4
    assert torch.equal(drop_tokens(tokens, tiny_clip, 0.0, generator), tokens)
    assert (drop_tokens(tokens, tiny_clip, 0.999, generator)[0] != 0).sum() == 3


def test_paraphrases_are_variants_as_they_are(untrained_clip, tmp_path):
    sources = TextSources(templates="none")
    paraphrases = [("keeps rain off", "a brolly"), (), ("holds a ship",)]
    bank = build_bank(untrained_clip, NAMES, SYNONYMS, sources, folder=tmp_path, paraphrases=paraphrases)
    rows = bank.rows(np.array([0, 0, 0, 2, 2, 2]), np.array([0, 1, 2, 0, 1, 2]))
    texts = ["umbrella", "keeps rain off", "a brolly", "anchor", "holds a ship", "anchor"]
    expected = encode_texts(untrained_clip, texts)
    torch.testing.assert_close(rows, expected, atol=2e-3, rtol=0)


def test_draws_without_chance_and_chance_without_draws_are_refused():
    for draws, drop, dropout in ((2, 0.0, 0.0), (1, 0.1, 0.0), (1, 0.0, 0.1)):
        with pytest.raises(ValueError, match="several draws need a probability above 0"):
            TextSources(draws=draws, token_drop=drop, tower_dropout=dropout)


def test_a_bank_is_an_ordinary_safetensors_file_written_whole_or_not_at_all(tiny_clip, tmp_path, monkeypatch):
    names = [f"thing {number}" for number in range(300)]  # more than one encoded batch
    bank = build_bank(tiny_clip, names, [()] * 300, TextSources(), folder=tmp_path)
    variants = load_file(bank.path)["variants"]
    assert variants.shape == (300, 7, bank.variants.dim)
    prompts = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}", "an image with a {}")
    expected = encode_texts(tiny_clip, [prompt.replace("{}", "thing 299") for prompt in (*prompts, "there is a {}")])
    torch.testing.assert_close(variants[299].float(), expected, atol=2e-3, rtol=0)

    def fails_in_the_second_group(clip, tokens, calls=[]):  # noqa: B006
        calls.append(len(tokens))
        if len(calls) > 1:
            raise OSError("no space left on device")
        return encode_tokens(clip, tokens)

    monkeypatch.setattr("ovd.text.bank.encode_tokens", fails_in_the_second_group)
    with pytest.raises(OSError, match="no space"):
        build_bank(tiny_clip, names[:299], [()] * 299, TextSources(), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [bank.path.name]


def test_what_a_killed_build_left_is_removed(untrained_clip, tmp_path):
    killed = subprocess.Popen(["true"])
    killed.wait()
    running, other_machine = (f"a.safetensors.{name}.tmp" for name in (f"{platform.node()}.{os.getppid()}", "x.1"))
    for name in (f"a.safetensors.{platform.node()}.{killed.pid}.tmp", running, other_machine):
        (tmp_path / name).touch()
    bank = build_bank(untrained_clip, NAMES, SYNONYMS, TextSources(), folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {bank.path.name, running, other_machine}


def test_a_bank_serves_any_vocabulary_it_holds(bank, untrained_clip):
    chosen = TextBank(bank.path, text_tower=bank.text_tower, names=["anchor", "umbrella"])
    assert chosen.names == ("anchor", "umbrella")
    both = np.array([0, 1])
    assert torch.equal(chosen.rows(both, both), bank.rows(np.array([2, 0]), both))


def test_a_bank_of_other_classes_or_of_another_tower_is_refused(bank):
    with pytest.raises(ValueError, match=r"lacks 2 classes \(gear, bow\)"):
        TextBank(bank.path, names=["gear", "anchor", "bow"])
    with pytest.raises(ValueError, match="a different text tower"):
        TextBank(bank.path, text_tower="0" * 64)


def test_a_class_given_twice_is_refused(untrained_clip, tmp_path):
    with pytest.raises(ValueError, match="'gear' occurs more than once"):
        build_bank(untrained_clip, ["gear", "anchor", "gear"], [()] * 3, TextSources(), folder=tmp_path)


def test_dropout_of_the_text_tower_is_in_both_branches_and_keeps_the_mean(untrained_clip):
    block, ones = _residual_blocks(untrained_clip.model)[0], torch.ones(200, 50)
    with tower_dropout(untrained_clip, 0.5, torch.Generator().manual_seed(0)):
        for branch in (block.ls_1, block.ls_2):
            assert set(branch(ones).unique().tolist()) == {0.0, 2.0}


def test_missing_paraphrases_are_the_names_prompts_in_turn():
    sources = TextSources(templates="none", num_synonyms=1)
    prompts = class_texts("umbrella", ["brolly"], [], sources, 0)
    assert len(set(prompts)) == 2
    assert class_texts("umbrella", ["brolly"], ["keeps rain off"], sources, 4) == [
        *prompts, "keeps rain off", *prompts, prompts[0]
    ]  # fmt: skip


def test_a_file_without_a_class_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("\n  \n")
    config = Path(__file__).parents[2] / "configs" / "quickstart_base.yaml"
    options = (f"bank.cache={tmp_path / 'banks'}", "--classes-file", str(tmp_path / "names.txt"))
    monkeypatch.setattr("sys.argv", ["ovd text-bank", str(config), *options])
    with pytest.raises(ValueError, match=r"names\.txt: no class name in this file"):
        text_bank.main()
