"""Settings for pretraining the tiny CLIP."""

from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ovd.choices import Precision
from ovd.config.training import WorldData
from ovd.section import Section


class PretrainConfig(Section):
    """Config of pretraining the tiny CLIP on the world's image-text pairs: `tools/pretrain_clip.py`."""

    output: Path
    """Run folder."""
    data: WorldData = WorldData()
    steps: PositiveInt
    """Number of optimizer steps."""
    batch_size: PositiveInt = 256
    """Number of pairs per optimizer step."""
    crop: PositiveInt = 96
    """Side in pixels of the random crop of a pair's image."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the order of the pairs and the crops."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate (AdamW)."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of matrices and convolution kernels."""
    warmup_steps: NonNegativeInt = 100
    """Number of steps of linear warm-up, before a cosine decay to 1 % of the peak."""
    clip_norm: PositiveFloat = 1.0
    """Maximum L2 norm of all gradients together."""
    precision: Precision = "auto"
    """Numerical precision: `bf16` (autocast), `float32`, or `auto`, which is bf16 where the CPU is fast at it."""
    threads: PositiveInt = 2
    """Number of CPU threads; results are bit-identical only for the same number."""
    save_every: PositiveInt = 200
    """Number of steps between checkpoints."""
