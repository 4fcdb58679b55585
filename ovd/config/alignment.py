"""Settings for aligning a backbone."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ovd.choices import Precision, WeightFormat
from ovd.config.training import ClipConfig, FileData, WorldData, default_kind
from ovd.data.loading.augmentation_options import AugmentationOptions
from ovd.model.crop_options import CropOptions
from ovd.section import Section


class FolderData(Section):
    """A folder of images without labels."""

    kind: Literal["folder"] = "folder"
    images: Path
    """Folder of the images, which is searched recursively. A relative path starts at the data root."""


class ShardData(Section):
    """Tar shards of image-text pairs, of which only the images are used."""

    kind: Literal["shards"] = "shards"
    shards: Path
    """Folder of the shards. A relative path starts at the data root."""
    num_shards: PositiveInt | None = None
    """Number of shards to use, from the first; all by default."""


class AlignData(AugmentationOptions):
    """Images to align a backbone on, and their augmentation. No labels or captions are used."""

    source: Annotated[
        WorldData | FileData | FolderData | ShardData, Field(discriminator="kind"), default_kind("source")
    ] = WorldData()
    """Source of the images: kind `world` (default, the embedded world's training scenes), `files` (the training images
    of a data set, as in a config of `ovd train`), `folder` or `shards`."""
    size: PositiveInt = 192
    """Longest side of an image in pixels, before scale jitter; best the size that the detector will be trained at."""
    color: NonNegativeFloat = 0.0
    """Strength of brightness, contrast, saturation and hue jitter; off by default."""
    workers: NonNegativeInt = 1
    """Number of loader processes; 0 loads in the training process."""


class AlignBoxes(Section):
    """Boxes of an image at which the dense feature is compared with CLIP's embedding of the crop."""

    random: NonNegativeInt = 4
    """Number of random boxes per image."""
    proposals: NonNegativeInt = 8
    """Number of proposals per image, boxes where an object may be. If fewer are found, random boxes replace the missing
    ones."""
    detector: Path | None = None
    """Run folder of a trained detector that finds the proposals, whatever their class; by default they are found from
    the image's edges, without any training (alignment/proposals.py)."""
    sides: tuple[PositiveFloat, PositiveFloat] = (0.09, 0.52)
    """Smallest and largest mean side of a box (square root of its area), relative to `data.size`."""
    aspect: Annotated[float, Field(ge=1)] = 1.35
    """Maximum ratio of the longer to the shorter side of a random box."""

    @model_validator(mode="after")
    def _some_boxes(self) -> "AlignBoxes":
        if self.random + self.proposals == 0:
            raise ValueError("random and proposals are both 0: an image needs at least one box")
        if self.sides[0] > self.sides[1]:
            raise ValueError(f"sides is {self.sides}; the smallest must come first")
        return self


class AlignSection(Section):
    """Settings of the training loop: optimization of the backbone, and checkpoints."""

    steps: PositiveInt
    """Number of optimizer steps."""
    batch_size: PositiveInt = 8
    """Number of images per optimizer step, over all ranks."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the order of the images, their augmentation and the random boxes."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate (AdamW) of the trunk. The text tower is not trained."""
    projection_rate: NonNegativeFloat = 1.0
    """Factor of `learning_rate` for CLIP's pooling and projection; 0 freezes them."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of matrices and convolution kernels; biases and norms have none."""
    warmup_steps: NonNegativeInt = 20
    """Number of steps of linear warm-up, at most `steps`, before a cosine decay to 1 % of the peak."""
    clip_norm: PositiveFloat = 1.0
    """Maximum L2 norm of all gradients together."""
    held_out: PositiveInt = 64
    """Number of images that are not trained on, at most a tenth of all. The losses before and after the training are
    measured on them."""
    recompute: bool = False
    """Recompute the backbone's activations in the backward pass: less memory, about a third more time."""
    precision: Precision = "auto"
    """Numerical precision: `bf16` (autocast), `float32`, or `auto`, which is bf16 where the hardware is fast at it."""
    device: str = "auto"
    """Device to train on: `auto` (the GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:N`."""
    threads: PositiveInt = 2
    """Number of CPU threads; results on a CPU are bit-identical only for the same number."""
    save_every: PositiveInt = 100
    """Number of steps between checkpoints."""
    keep_checkpoints: PositiveInt = 1
    """Number of checkpoints kept on disk, the newest ones."""


class AlignConfig(CropOptions):
    """Config of aligning a backbone's dense feature with CLIP's embeddings of crops: `ovd align-backbone`."""

    output: Path
    """Run folder. At the end it is also the folder of the aligned CLIP model, which `clip.name` of a training takes."""
    clip: ClipConfig = ClipConfig()
    weights: WeightFormat = "float32"
    """Number format of the aligned model's weights. The text tower is stored without loss in either format."""
    data: AlignData = AlignData()
    boxes: AlignBoxes = AlignBoxes()
    train: AlignSection
