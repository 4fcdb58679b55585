"""Write a CLIP model, aligned or not, as a folder that `load_clip` reads."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from ovd.choices import WeightFormat
from ovd.clip.load import BEFORE_ALIGNMENT, CONFIG, Clip, model_folder
from ovd.files import default_permissions, write_json

WEIGHTS_FILE = "open_clip_model.safetensors"
VISUAL = "visual."
"""Prefix of the names of the image side's weights."""
TOKENIZER_FILES = frozenset(
    {
        "merges.txt.gz", "merges.txt", "vocab.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
    }
)  # fmt: skip
"""Files that open_clip's and transformers' tokenizers are loaded from."""


def check_aligned_folder(name: str, folder: Path) -> None:
    """Check that an aligned model would not replace the model that it is made from.

    Args:
        name: name that the model to align is loaded by (`load_clip`).

    Raises:
        ValueError: the folder is the one that the model is loaded from.
    """
    if model_folder(name).resolve() == folder.resolve():
        raise ValueError(f"output={folder} is the folder of the model to align; give another folder")


def save_aligned(clip: Clip, name: str, folder: Path, *, teacher: Any, weight_format: WeightFormat) -> None:
    """Write an aligned model's weights with its architecture, activation, normalization and tokenizer.

    The config is written last, so an interrupted write leaves nothing that `load_clip` would accept.

    Args:
        clip: the model, whose weights may have changed since it was loaded.
        name: name that the model was loaded by (`load_clip`).
        teacher: the image side before alignment, which still embeds crops (`Clip.visual_for_crops`).
        weight_format: format of the image side's weights. A tensor of the text tower is stored as float16 only where
            that is exact, so that text embeddings stay the same.

    Raises:
        ValueError: as `check_aligned_folder`; a weight is too large for float16; or the tokenizer cannot be written.
    """
    check_aligned_folder(name, folder)
    before = {f"{VISUAL}{key}": tensor for key, tensor in teacher.state_dict().items()}
    before = {key.removeprefix(VISUAL): tensor for key, tensor in _weights(before, weight_format).items()}
    weights = {BEFORE_ALIGNMENT: before, WEIGHTS_FILE: _weights(clip.model.state_dict(), weight_format)}
    _write_folder(clip, name, folder, weights)


def save_clip(clip: Clip, name: str, folder: Path) -> None:
    """Write a model's weights as they are, with its architecture, activation, normalization and tokenizer.

    Args:
        clip: the model; an aligned one is copied with `copy_clip` instead.
        name: name that the model was loaded by (`load_clip`).

    Raises:
        ValueError: the tokenizer cannot be written.
    """
    _write_folder(clip, name, folder, {WEIGHTS_FILE: _weights(clip.model.state_dict(), "float32")})


def copy_clip(source: Path, folder: Path) -> None:
    """Copy the files that `load_clip` reads, the config last, from a model's folder with weights in `WEIGHTS_FILE`."""
    folder.mkdir(parents=True, exist_ok=True)
    known = TOKENIZER_FILES | {WEIGHTS_FILE, BEFORE_ALIGNMENT}
    for path in [*sorted(path for path in source.iterdir() if path.name in known), source / CONFIG]:
        shutil.copyfile(path, folder / path.name)


def _write_folder(clip: Clip, name: str, folder: Path, weights: dict[str, dict[str, Tensor]]) -> None:
    """Write a model's folder; the config comes last.

    Args:
        weights: tensors by name, for each file name.
    """
    source = model_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    if (source / CONFIG).is_file():
        config = json.loads((source / CONFIG).read_text())
        for path in sorted(path for path in source.iterdir() if path.name in TOKENIZER_FILES):
            shutil.copyfile(path, folder / path.name)
    else:
        config = _config_of_name(clip, name)
        _write_tokenizer(clip.tokenizer, name, config["model_cfg"], folder)
    for file_name, tensors in weights.items():
        temporary = folder / f"{file_name}.tmp"
        with default_permissions(temporary):
            save_file(tensors, temporary)
        temporary.replace(folder / file_name)
    write_json(folder / CONFIG, config)


def _config_of_name(clip: Clip, name: str) -> dict[str, Any]:
    preprocessing = {**open_clip.get_model_preprocess_cfg(clip.model), "mean": list(clip.mean), "std": list(clip.std)}
    return {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocessing}


def _write_tokenizer(tokenizer: Any, name: str, model_config: dict[str, Any], folder: Path) -> None:
    """Write the tokenizer's files; open_clip's own needs none, since it is the default of a folder without them."""
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    elif model_config["text_cfg"].get("hf_tokenizer_name") or not isinstance(tokenizer, open_clip.SimpleTokenizer):
        raise ValueError(f"the tokenizer of {name}, {type(tokenizer).__name__}, cannot be saved")


def _weights(state: dict[str, Tensor], weight_format: WeightFormat) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if weight_format == "float16" and tensor.is_floating_point():
            half = tensor.half()
            if name.startswith(VISUAL):
                if half.isinf().any():
                    raise ValueError(f"{name} has values outside float16's range; set weights=float32")
                tensor = half
            elif torch.equal(half.to(tensor.dtype), tensor):
                tensor = half
        weights[name] = tensor
    return weights
