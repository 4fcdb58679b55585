"""Contrastive pretraining of the tiny CLIP on the embedded world's image-text pairs."""

from pathlib import Path

import numpy as np
import open_clip
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovd.clip.load import Clip
from ovd.config.pretraining import PretrainConfig
from ovd.data.images.read import read_image
from ovd.data.pairs.tar import PairShards
from ovd.data.world.glyphs import load_glyphs
from ovd.data.world.scene import draw_scene
from ovd.data.world.settings import Settings
from ovd.engine import checkpoint
from ovd.engine.log import RunLog
from ovd.engine.optim import (
    build_optimizer,
    check_finite,
    gradient_norm,
    learning_rate_factor,
    set_learning_rate,
    step_if_finite,
)
from ovd.engine.parameter_groups import GroupSpec, parameter_groups
from ovd.engine.train_state import TrainState
from ovd.precision import Compute
from ovd.progress import progress
from ovd.text.encoder import encode_classes
from ovd.text.prompts import SHORT_TEMPLATES

MAX_LOGIT_SCALE = 100.0
ZERO_SHOT_STREAM = 1_000_003
ZERO_SHOT_SCENES_PER_CLASS, ZERO_SHOT_SIZE_PX = 8, 112


def load_pairs(folder: Path) -> tuple[UInt8[np.ndarray, "N S S 3"], list[str]]:
    """Load all pairs into memory (60,000 of 112 px are 2.3 GB), except those with an empty caption."""
    shards = PairShards(folder)
    images, captions = [], []
    for index in progress(range(len(shards)), len(shards), "reading pairs"):
        pair = shards[index]
        if pair.caption:
            images.append(read_image(pair.image))
            captions.append(pair.caption)
    return np.stack(images), captions


def batch_of_step(
    images: UInt8[np.ndarray, "N S S 3"], *, step: int, batch_size: int, crop: int, seed: int
) -> tuple[Int[np.ndarray, " B"], UInt8[Tensor, "B 3 crop crop"]]:
    """Return a step's pair indices and images, cropped and mirrored at random: a pure function of (seed, step).

    Raises:
        ValueError: there are fewer pairs than `batch_size`, or `crop` is larger than the images.
    """
    if len(images) < batch_size or crop > images.shape[1]:
        raise ValueError(
            f"{len(images)} pairs of {images.shape[1]} px are too few or too small for {batch_size} crops of {crop} px"
        )
    steps_per_epoch = len(images) // batch_size
    epoch, position = divmod(step, steps_per_epoch)
    order = np.random.default_rng([seed, 0, epoch]).permutation(len(images))
    indices = order[position * batch_size : (position + 1) * batch_size]
    rng = np.random.default_rng([seed, 1, step])
    room = images.shape[1] - crop
    batch = np.empty((batch_size, crop, crop, 3), np.uint8)
    for row, index in enumerate(indices):
        y, x = rng.integers(0, room + 1, 2)
        view = images[index, y : y + crop, x : x + crop]
        batch[row] = view[:, ::-1] if rng.random() < 0.5 else view
    return indices, torch.from_numpy(batch).permute(0, 3, 1, 2)


def normalize(images: UInt8[Tensor, "B 3 H W"], clip: Clip) -> Float[Tensor, "B 3 H W"]:
    """Normalize images by CLIP's mean and standard deviation."""
    mean = torch.tensor(clip.mean).view(3, 1, 1)
    std = torch.tensor(clip.std).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def pretrain(clip: Clip, images: UInt8[np.ndarray, "N S S 3"], captions: list[str], config: PretrainConfig) -> None:
    """Train `clip.model` in place with CLIP's symmetric contrastive loss; resume if the run folder has a checkpoint.

    Raises:
        ValueError: the run in the folder was started with other settings.
    """
    compute = Compute.configured(config.precision, torch.device("cpu"))
    model = compute.place(clip.model).train()
    groups = parameter_groups(model, {"clip": GroupSpec([model], weight_decay=config.weight_decay)})
    optimizer = build_optimizer(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    contrastive_loss = open_clip.ClipLoss()
    tokens = clip.tokenizer(captions)
    resolved_config = config.model_dump(mode="json")

    state = TrainState(model, optimizer)
    found = checkpoint.latest(config.output)
    if found is not None:
        if found.config != resolved_config:
            raise ValueError(
                f"{config.output} was started with different settings: {found.config}; now they are {resolved_config}"
            )
        checkpoint.restore(found, state)
        state.step = found.step
    with RunLog(config.output, total_steps=config.steps, resumed_step=state.step) as log:
        for step in range(state.step, config.steps):
            factor = learning_rate_factor(
                step, warmup_steps=config.warmup_steps, total_steps=config.steps, decay="cosine"
            )
            set_learning_rate(optimizer, factor)
            indices, batch = batch_of_step(
                images, step=step, batch_size=config.batch_size, crop=config.crop, seed=config.seed
            )
            pixels = normalize(batch, clip).contiguous(memory_format=compute.memory_format)
            with compute.autocast():
                image_embeddings = model.encode_image(pixels, normalize=True)
                text_embeddings = model.encode_text(tokens[torch.from_numpy(indices)], normalize=True)
            loss = contrastive_loss(image_embeddings.float(), text_embeddings.float(), model.logit_scale.exp())
            loss.backward()
            losses, norm = {"contrastive": loss}, gradient_norm(model.parameters())
            numbers = step_if_finite(optimizer, losses, norm, max_norm=config.clip_norm)
            optimizer.zero_grad()
            by_name = check_finite(losses, numbers, indices.tolist())
            with torch.no_grad():
                model.logit_scale.clamp_(max=np.log(MAX_LOGIT_SCALE))
            rate = config.learning_rate * factor
            state.step = step + 1
            log.train(state.step, by_name, lr=rate, num_images=config.batch_size)
            if state.step % config.save_every == 0 or state.step == config.steps:
                checkpoint.save(config.output, state, config=resolved_config)
    model.eval()


@torch.no_grad()
def zero_shot_accuracy(clip: Clip, settings: Settings) -> Float[np.ndarray, " C"]:
    """Measure top-1 accuracy per class of naming one centered object of 48 to 96 px, on scenes of a separate seed.

    The class text is the normalized mean over seven short prompts.
    """
    glyphs = load_glyphs()
    text = encode_classes(clip, [glyph.name for glyph in glyphs], SHORT_TEMPLATES)
    accuracy = np.zeros(len(glyphs))
    for index in progress(range(len(glyphs)), len(glyphs), "zero-shot"):
        rng = np.random.default_rng([settings.seed, ZERO_SHOT_STREAM, index])
        scenes = [
            draw_scene(
                rng,
                [index],
                size_px=ZERO_SHOT_SIZE_PX,
                object_sizes_px=[float(rng.uniform(48, 96))],
                num_distractors=int(rng.integers(0, 3)),
                style=settings.train_style,
                centered=True,
            ).image
            for _ in range(ZERO_SHOT_SCENES_PER_CLASS)
        ]
        pixels = normalize(torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2), clip)
        image = clip.model.encode_image(pixels, normalize=True)
        accuracy[index] = (image @ text.T).argmax(1).eq(index).float().mean().item()
    return accuracy
