"""A CLIP model that is saved to a folder and loaded again is the same model."""

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from encoded_texts import encode_texts
from open_clip.transformer import QuickGELU
from safetensors import safe_open

from ovd.clip.load import Clip, load_clip
from ovd.clip.save import save_aligned
from ovd.text.encoder import text_tower_fingerprint

SMALL = "ViT-S-32-alt"


def save(clip: Clip, name: str, folder: Path, **options) -> None:
    save_aligned(clip, name, folder, teacher=clip.visual_for_crops(), **options)


def changed(clip: Clip) -> Clip:
    """Copy a CLIP model with a changed backbone and one text-tower weight that float16 cannot hold exactly."""
    model = copy.deepcopy(clip.model)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        model.ln_final.bias[0] += 1e-5
    return Clip(model, clip.tokenizer, clip.mean, clip.std, clip.dim)


@pytest.mark.parametrize("weight_format", ["float16", "float32"])
def test_the_tiny_clip_keeps_its_text_tower_to_the_bit(tiny_clip, weight_format, tmp_path):
    torch.manual_seed(0)
    clip = changed(tiny_clip)
    save(clip, "tiny", tmp_path / "aligned", weight_format=weight_format)
    loaded = load_clip(str(tmp_path / "aligned"))
    assert text_tower_fingerprint(loaded) == text_tower_fingerprint(clip)
    assert (loaded.mean, loaded.std, loaded.dim) == (clip.mean, clip.std, clip.dim)
    texts = ["a photo of an umbrella", "naïve café"]
    assert torch.equal(encode_texts(loaded, texts), encode_texts(clip, texts))
    exact = weight_format == "float32"
    for name, tensor in clip.model.visual.state_dict().items():
        stored = loaded.model.visual.state_dict()[name]
        assert torch.equal(stored, tensor if exact or not tensor.is_floating_point() else tensor.half().float())
    with safe_open(tmp_path / "aligned" / "open_clip_model.safetensors", framework="pt") as file:
        assert file.get_tensor("visual.trunk.stem.0.0.weight").dtype == getattr(torch, weight_format)
    before = loaded.visual_for_crops().state_dict()
    for name, tensor in clip.visual_for_crops().state_dict().items():
        assert torch.equal(before[name], tensor if exact or not tensor.is_floating_point() else tensor.half().float())
    save(loaded, str(tmp_path / "aligned"), tmp_path / "again", weight_format="float32")
    again = load_clip(str(tmp_path / "again"))
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in loaded.model.state_dict().items())


def test_a_named_model_takes_activation_and_normalization_with_it(tmp_path, monkeypatch):
    """A saved model keeps its activation and normalization: here QuickGELU and local weights with a normalization of
    their own.

    The model is made small, since those that open_clip names are large.
    """
    config, name = open_clip.get_model_config(SMALL), f"{SMALL}-quickgelu"
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 2
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, {**config, "quick_gelu": True})
    torch.manual_seed(0)
    weights = tmp_path / "model.pt"
    torch.save(load_clip(name, "random").model.state_dict(), weights)
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    clip = load_clip(name, str(weights), activation="quick_gelu", **own)
    save(clip, name, tmp_path / "folder", weight_format="float16")
    loaded = load_clip(str(tmp_path / "folder"))
    assert {"mean": loaded.mean, "std": loaded.std} == own
    assert any(isinstance(module, QuickGELU) for module in loaded.model.visual.modules())
    assert text_tower_fingerprint(loaded) == text_tower_fingerprint(clip)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = clip.model.encode_image(images, normalize=True)
        torch.testing.assert_close(loaded.model.encode_image(images, normalize=True), expected, atol=2e-3, rtol=0)


def test_a_tokenizer_of_transformers_is_written_too(tmp_path):
    clip = load_clip(SMALL, "random")

    class Tokenizer:
        def __call__(self, texts):
            raise NotImplementedError

        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    tokenizer: Any = Tokenizer()
    save(Clip(clip.model, tokenizer, clip.mean, clip.std, clip.dim), SMALL, tmp_path, weight_format="float32")
    assert (tmp_path / "tokenizer.json").is_file()
    other: Any = len
    with pytest.raises(ValueError, match="builtin_function_or_method, cannot be saved"):
        save(Clip(clip.model, other, clip.mean, clip.std, clip.dim), SMALL, tmp_path, weight_format="float32")


def test_mistakes_are_named_and_leave_no_folder_that_loads(tiny_clip, tmp_path):
    clip = changed(tiny_clip)
    with torch.no_grad():
        next(clip.model.visual.parameters())[0] = 1e6
    with pytest.raises(ValueError, match=r"visual\..* outside float16's range; set weights=float32"):
        save(clip, "tiny", tmp_path, weight_format="float16")
    assert not (tmp_path / "open_clip_config.json").exists()
    save(clip, "tiny", tmp_path, weight_format="float32")
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == clip.dim
    with pytest.raises(ValueError, match="is the folder of the model to align"):
        save(clip, str(tmp_path), tmp_path, weight_format="float32")
