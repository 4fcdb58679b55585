"""Load a CLIP model, its tokenizer and its normalization, all through open_clip."""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor, nn

import ovd.clip.tiny_net  # noqa: F401  registers the tiny backbone with timm
from ovd.choices import Activation
from ovd.clip.load_errors import hub_errors, weights_errors
from ovd.clip.pretrained_settings import check_activation, normalization_of, tag_needs_quick_gelu
from ovd.clip.word_cache import bound_word_cache
from ovd.precision import check_default_dtype
from ovd.root_logger import preserve_root_logger

ASSETS = Path(__file__).parents[1] / "assets"
TINY_CLIP = ASSETS / "tiny_clip"
CONFIG = "open_clip_config.json"
"""File in a model's folder with its architecture and normalization."""
WEIGHTS = (".safetensors", ".bin", ".pth")
"""Suffixes of the files in a model's folder that open_clip reads as its weights."""
open_clip.add_model_config(ASSETS / "clip_models")  # NFNet-F0 to -F6, the paper's backbones


@dataclass(frozen=True)
class Clip:
    """A CLIP model with its tokenizer and normalization."""

    model: Any
    """open_clip's CLIP or a similar class (they share no typed base), in eval mode, float32, on the CPU."""
    tokenizer: Callable[[list[str]], Int[Tensor, "N L"]]
    """Function from a list of N strings to token ids, padded to the context length."""
    mean: tuple[float, ...]
    """Mean that images are normalized with, RGB in 0..1."""
    std: tuple[float, ...]
    """Standard deviation that images are normalized with, RGB in 0..1."""
    dim: int
    """D, number of dimensions of the text-image space."""
    weights_before_alignment: Path | None = None
    """File of the image side's earlier weights, if the model's dense feature was aligned (save.py); None otherwise."""

    def visual_for_crops(self) -> Any:
        """Return a copy of the image side that embeds whole images and crops as CLIP was trained to.

        It has the weights from before the alignment of the dense feature, which makes these embeddings worse.
        """
        visual = copy.deepcopy(self.model.visual)
        if self.weights_before_alignment is not None:
            visual.load_state_dict(load_file(self.weights_before_alignment))
        return visual


BEFORE_ALIGNMENT = "image_side_before_alignment.safetensors"
"""File in an aligned model's folder with the weights of the image side that was its teacher."""


@preserve_root_logger()
def load_clip(
    name: str,
    weights: str | None = None,
    *,
    activation: Activation | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Clip:
    """Load a model by name.

    Args:
        name: `tiny` for the toolkit's own, a folder with an `open_clip_config.json`, or a name from
            `open_clip.list_models()`.
        weights: for a name from open_clip, one of its tags (downloaded once), a local file, or `random`. `tiny` and a
            folder include their weights.
        activation: activation that the weights in a local file were trained with, which the file does not record. Not
            needed if the backbone is timm's.
        mean, std: normalization of the images that the weights in a local file were trained on, RGB in 0..1. Not needed
            if open_clip's weights of this name all have the same normalization.

    Raises:
        ValueError: the name is unknown, a folder has no model or no weights, the weights of a name are missing or
            cannot be fetched, are damaged, contain more than tensors, do not fit the model (shapes, activation), or
            have an unknown activation or normalization; `activation`, `mean` or `std` is given without a local file; or
            torch's default dtype is not float32.
    """
    check_default_dtype()
    is_file = weights is not None and Path(weights).is_file()
    if not is_file and (activation, mean, std) != (None, None, None):
        if weights not in (None, "random"):
            tag_needs_quick_gelu(name, weights)  # raises if it is no tag: a missing file
        raise ValueError(
            f"clip.activation, clip.mean and clip.std are for local weights files only; {weights or name} has its own"
        )
    if (mean is None) != (std is None):
        raise ValueError("clip.mean and clip.std go together; give both or neither")
    folder = model_folder(name)
    if folder.is_dir():
        _check_has_config(folder)
        if weights is not None:
            raise ValueError(
                f"clip.weights is {weights!r}, but {folder} includes its own weights; set clip.weights=null"
            )
        return _load_folder(folder)
    if name not in open_clip.list_models():
        raise ValueError(f"clip.name {name!r} is neither a folder nor a name in open_clip.list_models()")
    if weights is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise ValueError(f"clip.weights is not set for {name}; set it to a local file, `random`, or one of: {tags}")
    with hub_errors(f"the tokenizer of {name}"):
        tokenizer = open_clip.get_tokenizer(name)
    if weights == "random":
        with _without_weights():
            model = open_clip.create_model(name)
    elif is_file:
        model = _model_of_file(name, weights, activation, mean, std)
    else:
        model = _model_of_tag(name, weights)
    return _with_preprocessing(model, tokenizer, _embed_dim(name))


def model_folder(name: str) -> Path:
    """Return a model's name as a folder, which may not exist; for `tiny`, the toolkit's own."""
    return TINY_CLIP if name == "tiny" else Path(name)


def _check_has_config(folder: Path) -> None:
    """Check that a folder is that of a CLIP model.

    Raises:
        ValueError: the folder has no config.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not the folder of a CLIP model: it has no {CONFIG}")


def _model_of_file(
    name: str,
    weights: str,
    activation: Activation | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> nn.Module:
    if activation is not None:
        check_activation(name, weights, activation == "quick_gelu")
    elif "timm_model_name" not in open_clip.get_model_config(name)["vision_cfg"]:  # timm's backbones all have GELU
        raise ValueError(
            f"{weights} does not say which activation its weights were trained with, and the wrong one makes the "
            "model silently worse; set clip.activation=gelu or quick_gelu (OpenAI's weights need quick_gelu)"
        )
    preprocessing = normalization_of(name, weights, mean, std)
    with weights_errors(f"clip.weights {weights!r}", name):
        return open_clip.create_model(name, pretrained=weights, force_preprocess_cfg=preprocessing)


def _model_of_tag(name: str, tag: str) -> nn.Module:
    needs_quick = tag_needs_quick_gelu(name, tag)
    if needs_quick is not None:
        check_activation(name, tag, needs_quick)
    with hub_errors(f"clip.weights {tag!r} of {name}", "; or set clip.weights=FILE"):
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
    with weights_errors(f"clip.weights {tag!r}", name):
        return open_clip.create_model(name, pretrained=tag)


@preserve_root_logger()
def build_on_meta(name: str) -> tuple[nn.Module, int]:
    """Build a model on torch's meta device, without memory for weights; return it and D of its text-image space.

    Args:
        name: name as in a config: `tiny`, a folder, or a model name of open_clip.

    Raises:
        ValueError: the name is unknown, or a folder has no model.
    """
    folder = model_folder(name)
    if folder.is_dir():
        _check_has_config(folder)
        with torch.device("meta"), _without_weights():
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, device="meta")
        return model, _folder_dim(folder)
    if name not in open_clip.list_models():
        raise ValueError(f"clip.name {name!r} is neither a folder nor a name in open_clip.list_models()")
    with torch.device("meta"), _without_weights():
        return open_clip.create_model(name, load_weights=False, device="meta"), _embed_dim(name)


@contextmanager
def _without_weights() -> Iterator[None]:
    """Context to build a model without weights on purpose, in which open_clip's warning of that is not logged."""

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded for model")

    root = logging.getLogger()  # open_clip logs with the root logger
    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)


def _embed_dim(name: str) -> int:
    return int(open_clip.get_model_config(name)["embed_dim"])


def _folder_dim(folder: Path) -> int:
    return int(json.loads((folder / CONFIG).read_text())["model_cfg"]["embed_dim"])


def _load_folder(folder: Path, *, load_weights: bool = True) -> Clip:
    if load_weights and not any(path.suffix in WEIGHTS for path in folder.iterdir()):
        raise ValueError(f"{folder} has a config but no weights; open_clip looks for {', '.join(WEIGHTS)} files")
    with weights_errors(f"the model in {folder}", str(folder)):
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=load_weights)
    merges = folder / "merges.txt.gz"
    if merges.exists():
        tokenizer = open_clip.SimpleTokenizer(bpe_path=str(merges), context_length=model.context_length)
    else:
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    before = folder / BEFORE_ALIGNMENT
    return _with_preprocessing(model, tokenizer, _folder_dim(folder), before if before.is_file() else None)


def _with_preprocessing(model: nn.Module, tokenizer, dim: int, before_alignment: Path | None = None) -> Clip:
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    mean, std = tuple(preprocessing["mean"]), tuple(preprocessing["std"])
    bound_word_cache(tokenizer)
    return Clip(model.eval(), tokenizer, mean, std, dim, before_alignment)


@preserve_root_logger()
def build_untrained_tiny_clip() -> Clip:
    """Build the tiny CLIP with random weights, for pretraining. Uses torch's global random state."""
    with _without_weights():
        return _load_folder(TINY_CLIP, load_weights=False)
