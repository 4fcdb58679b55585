"""Images without labels, and the config of a short alignment on them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from merged import merged
from PIL import Image
from safetensors.torch import save_file
from small_backbones import DIM, FAMILIES, randomize

from ovd.clip.load import TINY_CLIP
from ovd.config.alignment import AlignConfig
from ovd.config_files import parse_config

SIZES = ((90, 140), (120, 80), (96, 96), (61, 150))
"""Height and width of the images, in turn."""


def write_images(folder: Path, count: int = 12) -> Path:
    """Write pictures of colored rectangles on noise, most of them not square, some in a subfolder."""
    rng = np.random.default_rng(0)
    (folder / "more").mkdir(parents=True)
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        pixels = rng.integers(90, 110, (height, width, 3)).astype(np.uint8)
        for _ in range(3):
            y, x = int(rng.integers(0, height - 30)), int(rng.integers(0, width - 30))
            pixels[y : y + int(rng.integers(14, 30)), x : x + int(rng.integers(14, 30))] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save((folder / "more" if number % 3 == 0 else folder) / f"{number}.png")
    return folder


def small_align_config(output: Path, images: Path, **changes: Any) -> AlignConfig:
    """Make a config of six steps of two images each, with `changes` merged into its sections."""
    values: dict[str, Any] = {
        "output": str(output),
        "crop": 32,
        "data": {"source": {"kind": "folder", "images": str(images)}, "size": 96, "workers": 0},
        "boxes": {"random": 2, "proposals": 3, "sides": [0.2, 0.6]},
        "train": {
            "steps": 6, "batch_size": 2, "warmup_steps": 1, "save_every": 2, "precision": "float32", "threads": 1,
        },
    }  # fmt: skip
    return parse_config(merged(values, changes), AlignConfig, "test")


def write_clip_folder(folder: Path, family: str) -> Path:
    """Write a CLIP model with a miniature backbone of this family, random weights, and the tiny CLIP's tokenizer."""
    model_config = {
        "embed_dim": 768 if family == "siglip" else DIM,
        "vision_cfg": {key: list(value) if isinstance(value, tuple) else value for key, value in
                       FAMILIES[family].items()},
        "text_cfg": {"context_length": 32, "vocab_size": 4514, "width": 64, "heads": 1, "layers": 1},
        "quick_gelu": family == "vit",
    }  # fmt: skip
    config = {"model_cfg": model_config, "preprocess_cfg": {"mean": [0.4, 0.45, 0.5], "std": [0.2, 0.25, 0.3]}}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    shutil.copyfile(TINY_CLIP / "merges.txt.gz", folder / "merges.txt.gz")
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    randomize(model.visual)
    weights = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
