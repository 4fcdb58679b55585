"""The text tower against open_clip's own `encode_text`, which always computes the whole context."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
from encoded_texts import encode_texts
from open_clip.model import CustomTextCLIP

from ovd.clip.load import Clip
from ovd.text.encoder import encode_classes, text_tower_fingerprint, text_tower_on

TEXTS = ["anchor", "a photo of an umbrella", "a long line about a very small house beside the sea", ""]
CAUSAL: dict[str, dict[str, Any]] = {"argmax": {}, "eos": {"pool_type": "eos", "eos_id": 49407}}
SEES_PADDING: dict[str, dict[str, Any]] = {
    "both directions": {"no_causal_mask": True},
    "last place": {"pool_type": "last"},
    "class token": {"embed_cls": True},
}


def clip_with(**text) -> Clip:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    config = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2, **text}
    model = CustomTextCLIP(embed_dim=32, vision_cfg=vision, text_cfg=config).eval()
    return Clip(model, open_clip.SimpleTokenizer(), (0.5,) * 3, (0.5,) * 3, 32)


def test_threads_that_encode_at_once_get_their_own_rows_and_leave_the_text_tower_whole():
    clip = clip_with()
    before = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    texts = [["anchor " * length] for length in range(1, 13)]
    expected = [encode_texts(clip, of_one) for of_one in texts]
    with ThreadPoolExecutor(4) as threads:
        rows = list(threads.map(lambda of_one: encode_texts(clip, of_one), 4 * texts))
    assert all(torch.equal(one, other) for one, other in zip(rows, 4 * expected, strict=True))
    after = clip.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_names_that_the_text_tower_cannot_tell_apart_are_told(capsys):
    clip, long = replace(clip_with(), tokenizer=open_clip.SimpleTokenizer(context_length=16)), "very " * 20
    names = [f"a {long} chair", "chair", f"a {long} table", "Chair"]
    rows = encode_classes(clip, names, ("a photo of {}.", "{}"))
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    told = capsys.readouterr().err
    assert "cannot distinguish 1 pair of names" in told
    assert repr(names[0]) in told
    assert repr(names[2]) in told
    encode_classes(clip, ["chair", "table"], ("{}",))
    assert "cannot distinguish" not in capsys.readouterr().err


def places_computed(clip: Clip) -> list[int]:
    """Return a list that gets the number of positions of every batch that the text tower processes from now on."""
    lengths: list[int] = []
    text_tower = getattr(clip.model, "text", clip.model)
    text_tower.transformer.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    return lengths


def assert_as_open_clip_has_it(clip: Clip) -> None:
    with torch.no_grad():
        expected = clip.model.encode_text(clip.tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(encode_texts(clip, TEXTS), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", CAUSAL)
def test_padding_that_is_not_seen_is_not_computed(form):
    clip = clip_with(**CAUSAL[form])
    assert_as_open_clip_has_it(clip)
    lengths = places_computed(clip)
    encode_texts(clip, TEXTS)
    encode_texts(clip, TEXTS[:1])
    assert lengths == [int((clip.tokenizer(TEXTS) != 0).sum(dim=1).max()), 3]
    assert clip.model.text.positional_embedding.shape[0] == 77


@pytest.mark.parametrize("form", SEES_PADDING)
def test_padding_that_is_seen_is_computed(form):
    clip = clip_with(**SEES_PADDING[form])
    lengths = places_computed(clip)
    assert_as_open_clip_has_it(clip)
    assert set(lengths) == {77 + (form == "class token")}


def test_the_tiny_clip(tiny_clip):
    assert_as_open_clip_has_it(tiny_clip)
    full = tiny_clip.tokenizer(["umbrella " * 40])
    with torch.no_grad():
        expected = tiny_clip.model.encode_text(full, normalize=True)
    torch.testing.assert_close(encode_texts(tiny_clip, ["umbrella " * 40]), expected, atol=1e-6, rtol=1e-5)


def test_classes_are_the_same_however_many_go_together(untrained_clip):
    names = [f"thing {number}" for number in range(300)]
    together = encode_classes(untrained_clip, names, ("{}", "a photo of a {}"))
    torch.testing.assert_close(together[290:], encode_classes(untrained_clip, names[290:], ("{}", "a photo of a {}")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_rows_are_the_same(untrained_clip):
    expected = encode_texts(untrained_clip, TEXTS)
    with text_tower_on(untrained_clip, torch.device("cuda")):
        found = encode_texts(untrained_clip, TEXTS)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["plain", "custom"])
def test_the_text_tower_moves_without_the_backbone(form, untrained_clip):
    clip = untrained_clip if form == "plain" else clip_with()
    image_side = {name for name, _ in clip.model.named_parameters() if name.startswith("visual.")}
    names = list(clip.model.state_dict())
    left_behind: set[str] = set()

    def look() -> None:
        with text_tower_on(clip, torch.device("meta")):
            left_behind.update(name for name, tensor in clip.model.named_parameters() if tensor.device.type == "cpu")

    with pytest.raises(NotImplementedError, match="meta"):  # the earlier weights have lost their values for good
        look()
    assert left_behind == image_side
    assert list(clip.model.state_dict()) == names


def test_the_fingerprint_tells_activations_apart():
    assert text_tower_fingerprint(clip_with()) == text_tower_fingerprint(clip_with())
    model = CustomTextCLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
        quick_gelu=True,
    ).eval()
    plain = clip_with()
    model.load_state_dict(plain.model.state_dict())
    quick = Clip(model, plain.tokenizer, plain.mean, plain.std, 32)
    assert text_tower_fingerprint(quick) != text_tower_fingerprint(plain)


def test_a_class_may_have_more_forms_than_are_encoded_at_a_time(tiny_clip):
    templates = tuple("x" * number + " {}" for number in range(257))
    (row,) = encode_classes(tiny_clip, ["anchor"], templates)
    prompts = ["x" * number + " anchor" for number in range(257)]
    rows = torch.cat([encode_texts(tiny_clip, prompts[:100]), encode_texts(tiny_clip, prompts[100:])])
    torch.testing.assert_close(row, torch.nn.functional.normalize(rows.mean(dim=0), dim=0))


def test_the_fingerprint_tells_tokenizers_apart(tiny_clip):
    other = replace(tiny_clip, tokenizer=lambda texts: tiny_clip.tokenizer([text[::-1] for text in texts]))
    assert text_tower_fingerprint(other) != text_tower_fingerprint(tiny_clip)
