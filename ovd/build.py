"""From a config to objects: the one file that knows both."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ovd.clip.load import Clip, build_on_meta, load_clip
from ovd.config import (
    ClipConfig,
    FileData,
    GatedShortcuts,
    PairsConfig,
    TrainConfig,
    WorldData,
    parse_config,
)
from ovd.data.annotations import AnnotationIndex, Format, load_annotations
from ovd.data.buckets import shape_groups
from ovd.data.coco_zero_shot import split_coco_base, split_coco_evaluation
from ovd.data.loader import ImageSource, mix_batches, repeat_factors, train_loader
from ovd.data.mosaic import Mosaics
from ovd.data.report import DataReport
from ovd.data.transforms import Sample, train_transform
from ovd.data.vocabulary import split_lvis_base
from ovd.data.world.build import build_world
from ovd.data.world.settings import Settings
from ovd.distributed import local_rank, rank, world_size
from ovd.engine import checkpoint
from ovd.engine.train import Saving, Schedule
from ovd.inference import DetectionOptions
from ovd.model.detector import Detector
from ovd.model.postprocess import ScoreEnsemble
from ovd.model.tower import ImageTower
from ovd.model.towers import image_tower
from ovd.precision import use_low_precision
from ovd.selftrain.filter import Filters
from ovd.selftrain.labelled_pairs import LabelledPairs, limit_per_text, read_kept_labels
from ovd.selftrain.labels import label_files, open_labelled_shards
from ovd.structures import Batch
from ovd.text.bank import Sources, TextBank, build_bank
from ovd.text.encoder import encode_classes, text_tower_fingerprint, text_tower_on
from ovd.text.pair_texts import PairTexts
from ovd.text.prompts import TEMPLATES, clean_name

DataFormat = Format | Literal["coco_zero_shot"]

PAIRS_SEED_OFFSET = 2**32
"""Keeps the order and augmentation of pairs apart from those of the detection data."""


@dataclass(frozen=True)
class TrainedDetector:
    """A detector with what it needs to be used: its config and the CLIP model whose text tower it speaks."""

    detector: Detector
    config: TrainConfig
    clip: Clip
    classes: tuple[str, ...]
    """Names it was trained on."""


def data_root() -> Path:
    """Where relative paths of data sets start: OVD_DATA, else DETECTRON2_DATASETS, else ./data."""
    return Path(os.environ.get("OVD_DATA") or os.environ.get("DETECTRON2_DATASETS") or "data")


def configured_clip(config: ClipConfig) -> Clip:
    """The CLIP model that a config names."""
    return load_clip(**config.model_dump())


def resolve_device(config: TrainConfig) -> torch.device:
    name = config.train.device
    if name == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    return torch.device(name)


def low_precision(config: TrainConfig) -> bool:
    return use_low_precision(config.train.precision, resolve_device(config))


def build_tower(config: TrainConfig, visual: Any) -> ImageTower:
    """CLIP's image tower with what the config says of it; `visual` is the image side of an open_clip model.

    Raises:
        ValueError: the tower is of no supported family, or its family lacks what is asked of it.
    """
    options = config.detector
    windows = {"window": options.window, "global_blocks": options.global_blocks} if options.window else {}
    tower = image_tower(visual, **windows)
    if options.freeze_tower:
        tower.requires_grad_(False)
    if options.frozen_layers:
        layers = tower.layers()
        if options.frozen_layers > len(layers):
            raise ValueError(f"detector.frozen_layers is {options.frozen_layers}; {config.clip.name} has {len(layers)}")
        for parameter in chain.from_iterable(layers[: options.frozen_layers]):
            parameter.requires_grad_(False)
    if options.recompute:
        tower.checkpoint_activations()
    if options.drop_path:
        tower.set_drop_path(options.drop_path)
    return tower


def build_detector(config: TrainConfig, clip: Clip) -> Detector:
    """A fresh detector around CLIP's image tower. Uses torch's global random state for the learned path."""
    return _assemble(
        config,
        clip.model.visual,
        text_dim=clip.dim,
        mean=clip.mean,
        std=clip.std,
        logit_scale=clip.model.logit_scale.exp().item(),
    )


def build_detector_on_meta(config: TrainConfig) -> Detector:
    """A detector without memory for its weights, to count its parameters and operations."""
    model, dim = build_on_meta(config.clip.name)
    with torch.device("meta"):
        return _assemble(config, model.visual, text_dim=dim, mean=(0.5,) * 3, std=(0.25,) * 3, logit_scale=100.0)


def _assemble(
    config: TrainConfig,
    visual: Any,
    *,
    text_dim: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    logit_scale: float,
) -> Detector:
    shortcuts = config.detector.shortcuts
    return Detector(
        build_tower(config, visual),
        text_dim=text_dim,
        mean=mean,
        std=std,
        logit_scale=logit_scale,
        channels=config.detector.channels,
        num_convs=config.detector.num_convs,
        shortcuts=frozenset(shortcuts.places) if isinstance(shortcuts, GatedShortcuts) else frozenset(),
        per_channel_gates=isinstance(shortcuts, GatedShortcuts) and shortcuts.per_channel,
        filter_size=shortcuts.filter_size if isinstance(shortcuts, GatedShortcuts) else 1,
        keeps_clip=config.eval.ensemble is not None,
        task_aligned=config.detector.head == "task_aligned",
    )


def load_training_index(config: TrainConfig, report: DataReport) -> AnnotationIndex:
    """The training set, without the novel classes' annotations where `data.classes` is `base`.

    Raises:
        ValueError: the data set has no novel classes, and `data.classes` is `base`.
        VocabularyLeak: a novel class's name would be trained on.
    """
    match config.data.source:
        case WorldData() as source:
            world = build_world(source.root, ("train",), Settings(seed=source.seed))
            format: DataFormat = "lvis"
            annotations, images = world / "annotations" / "lvis_train.json", world / "images"
        case FileData() as source:
            format = source.format
            annotations, images = data_root() / source.train_annotations, data_root() / source.train_images
    if format == "coco_zero_shot":
        index = load_annotations(annotations, images, format="coco", report=report)
        return split_coco_base(index) if config.data.classes == "base" else split_coco_evaluation(index)
    index = load_annotations(annotations, images, format=format, report=report)
    if config.data.classes == "all":
        return index
    if format != "lvis":
        raise ValueError(
            f"{index.path}: data.classes is `base`, but only LVIS files and COCO's zero-shot split say which classes "
            "are novel; set data.classes=all"
        )
    return split_lvis_base(index)


def load_validation_index(config: TrainConfig, report: DataReport) -> AnnotationIndex | None:
    """The validation set with its whole vocabulary; None where the config names none."""
    match config.data.source:
        case WorldData() as source:
            world = build_world(source.root, ("val",), Settings(seed=source.seed))
            return load_evaluation_index(
                world / "annotations" / "lvis_val.json", world / "images", "lvis", report=report
            )
        case FileData() as source:
            if source.val_annotations is None:
                return None
            images = data_root() / (source.val_images or source.train_images)
            return load_evaluation_index(data_root() / source.val_annotations, images, source.format, report=report)


def load_evaluation_index(
    annotations: Path, images: Path | None, format: DataFormat, *, report: DataReport
) -> AnnotationIndex:
    """A data set with the vocabulary and the images that its benchmark judges."""
    if format == "coco_zero_shot":
        return split_coco_evaluation(load_annotations(annotations, images, format="coco", report=report))
    return load_annotations(annotations, images, format=format, report=report)


def build_text_bank(config: TrainConfig, clip: Clip, index: AnnotationIndex) -> TextBank:
    """Variants of every class of the training vocabulary."""
    names = [category.name for category in index.categories]
    synonyms = [category.synonyms for category in index.categories]
    return build_class_bank(config, clip, names, synonyms)


def build_class_bank(config: TrainConfig, clip: Clip, names: list[str], synonyms: Sequence[Sequence[str]]) -> TextBank:
    """The text bank of any classes, as the config's `bank` says.

    Raises:
        ValueError: `bank.file` comes from another text tower, or lacks a class.
    """
    bank = config.bank
    if bank.file is not None:
        return TextBank(bank.file, tower=text_tower_fingerprint(clip), names=names)
    paraphrases = read_paraphrases(bank.paraphrases, names) if bank.paraphrases else [()] * len(names)
    sources = Sources(
        templates=TEMPLATES[bank.templates],
        num_synonyms=bank.synonyms,
        num_paraphrases=max(map(len, paraphrases), default=0),
        draws=bank.draws,
        token_drop=bank.token_drop,
        tower_dropout=bank.tower_dropout,
        seed=bank.seed,
    )
    with text_tower_on(clip, resolve_device(config)):
        return build_bank(clip, names, synonyms, sources, folder=bank.cache, paraphrases=paraphrases)


def read_paraphrases(path: Path, names: list[str]) -> list[tuple[str, ...]]:
    """The texts about each class from a JSON file {"class name": ["a text", ...]}; none for a class it does not name.

    Raises:
        ValueError: the file is not of that form, or names no class of these.
    """
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
        lists = list(texts.values()) if isinstance(texts, dict) else [None]
        if not all(
            isinstance(of_class, list) and all(isinstance(text, str) for text in of_class) for of_class in lists
        ):
            raise TypeError("not lists of texts by class name")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f'{path}: needs JSON of the form {{"class name": ["a text", ...]}} ({error})') from None
    if not set(texts) & set(names):
        raise ValueError(f"{path} has texts about {len(texts)} classes, none of which is in the vocabulary")
    return [tuple(texts.get(name, ())) for name in names]


def evaluation_text(
    config: TrainConfig, clip: Clip, names: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None
) -> Float[Tensor, "C D"]:
    """One unit row per class: the mean over the config's templates, and over as many synonyms as it trains with."""
    with text_tower_on(clip, resolve_device(config)):
        return encode_classes(clip, names, TEMPLATES[config.bank.templates], synonyms, config.bank.synonyms)


def pair_shards_folder(config: PairsConfig, source: WorldData | FileData) -> Path:
    """Where the pairs' shards are; the embedded world's are drawn on first use.

    Raises:
        ValueError: the config names none, and its data is not the world.
    """
    if config.shards is not None:
        return data_root() / config.shards
    if isinstance(source, FileData):
        raise ValueError("data.pairs.shards is missing: only the embedded world has pairs of its own")
    return build_world(source.root, ("pairs",), Settings(seed=source.seed)) / "pairs"


def load_labelled_pairs(
    config: PairsConfig, source: WorldData | FileData, clip: Clip, first_id: int
) -> tuple[LabelledPairs, PairTexts, dict[str, int]]:
    """The pairs to train on, their texts, and how many boxes each filter removed.

    Raises:
        ValueError: the labels were made with another text tower, are of other shards, or nothing passes the filters.
    """
    files = label_files(config.labels)
    folder = pair_shards_folder(config, source)
    tower = text_tower_fingerprint(clip)
    shards = open_labelled_shards(folder, files, tower=tower)
    filters = Filters(
        keep=config.keep,
        min_score=config.min_score,
        min_size_px=config.min_size_px,
        max_relative_area=config.max_relative_area,
        caption_match=config.caption_match,
    )
    kept, counts = read_kept_labels(files, filters, shards)
    banks = (TextBank(file, tower=tower) for file in files)
    texts = PairTexts(banks, [of_shard.pair_counts for of_shard in kept], first_id=first_id)
    num_left = counts.pop("kept")
    if config.max_per_text is not None:
        kept, counts["max_per_text"] = limit_per_text(kept, texts, config.max_per_text)
    counts["kept"] = num_left - counts["max_per_text"]
    return LabelledPairs(shards, kept, texts, with_boxes=config.use == "boxes"), texts, counts


def images_per_step(config: TrainConfig) -> tuple[int, int]:
    """How many images of the detection data a batch holds, and how many image-text pairs."""
    batch_size = config.train.batch_size
    if config.data.pairs is None:
        return batch_size, 0
    num_paired = min(batch_size - 1, max(1, round(batch_size * config.data.pairs.share)))
    return batch_size - num_paired, num_paired


def samples_drawn(found: checkpoint.Checkpoint) -> tuple[int, int]:
    """How many images of the detection data, and how many pairs, a run and those it went on from had drawn."""
    config = parse_config(found.config, TrainConfig, f"{found.folder}/state.json")
    first, first_paired = found.extra.get("first_samples", (0, 0))  # not stored by the first versions
    num_annotated, num_paired = images_per_step(config)
    return first + found.step * num_annotated, first_paired + found.step * num_paired


def training_batches(
    config: TrainConfig,
    index: AnnotationIndex,
    pairs: LabelledPairs | None = None,
    *,
    first_samples: tuple[int, int],
    size_divisor: int,
) -> Callable[[int], Iterator[Batch]]:
    """The batches from a step on; with pairs, each holds both at the configured share.

    Args:
        first_samples: how many images of the detection data, and how many pairs, earlier stages have drawn, so that
            this one goes on with what they have not seen.
        size_divisor: of the detector.
    """
    data = config.data

    def transform_to(size: int) -> Callable[[Sample, int], Sample]:
        return train_transform(size=size, scale=data.scale, flip=data.flip, color=data.colour)

    transform = transform_to(data.size)
    seed, (num_annotated, num_paired) = config.train.seed, images_per_step(config)
    repeat = repeat_factors(index, data.repeat_threshold)
    of_annotated: dict[str, Any] = {}
    if data.shape_groups > 1:
        groups, shapes = shape_groups(
            index.image_sizes, data.shape_groups, size=data.size, largest_scale=data.scale[1], divisor=size_divisor
        )
        of_annotated = {"groups": groups, "shapes": shapes}
    if data.mosaic:
        tile_transform = transform_to(max(1, data.size // 2))
        of_annotated = {"mosaics": Mosaics(probability=data.mosaic, weights=repeat, tile_transform=tile_transform)}

    def load(
        source: ImageSource, start: int, size: int, seed: int, repeat: np.ndarray | None, first_sample: int, **more: Any
    ) -> Iterator[Batch]:
        return train_loader(
            source,
            transform=transform,
            batch_size=size,
            seed=seed,
            start_step=start,
            num_steps=config.train.steps - start,
            num_workers=data.workers,
            repeat=repeat,
            first_sample=first_sample,
            part=(rank(), world_size()),
            size_divisor=size_divisor,
            **more,
        )

    def batches_from(step: int) -> Iterator[Batch]:
        annotated = load(index, step, num_annotated, seed, repeat, first_samples[0], **of_annotated)
        if pairs is None:
            return annotated
        paired = load(pairs, step, num_paired, seed + PAIRS_SEED_OFFSET, None, first_samples[1])
        return mix_batches(annotated, paired)

    return batches_from


def build_schedule(config: TrainConfig) -> Schedule:
    pairs = config.data.pairs
    weight = pairs.image_label_weight if pairs is not None and pairs.use == "image_labels" else 0.0
    names = Schedule.__dataclass_fields__.keys() - {
        "text_noise",
        "sampled_texts",
        "pair_box_loss",
        "image_label_weight",
    }
    settings = {name: getattr(config.train, name) for name in names}
    return Schedule(
        **settings,
        text_noise=config.bank.noise,
        sampled_texts=pairs.sampled_texts if pairs is not None else 0,
        pair_box_loss=pairs is not None and pairs.box_loss,
        image_label_weight=weight,
    )


def build_saving(config: TrainConfig, first_samples: tuple[int, int], data: Mapping[str, str]) -> Saving:
    return Saving(
        run_dir=config.output,
        save_every=config.train.save_every,
        keep_checkpoints=config.train.keep_checkpoints,
        eval_every=config.train.eval_every,
        resolved_config=config.model_dump(mode="json"),
        wandb=config.train.wandb,
        first_samples=first_samples,
        data=data,
    )


def detection_options(config: TrainConfig) -> DetectionOptions:
    names = DetectionOptions.__dataclass_fields__.keys() - {"use_compiled"}
    return DetectionOptions(**{name: getattr(config.eval, name) for name in names})


def score_ensemble(trained: "TrainedDetector", names: Sequence[str]) -> ScoreEnsemble | None:
    """How the detector's scores and CLIP's are joined for classes of these names; None where they are not."""
    config = trained.config.eval.ensemble
    if config is None:
        return None
    base = set(map(clean_name, trained.classes))
    weights = torch.tensor([config.base if clean_name(name) in base else config.novel for name in names])
    return ScoreEnsemble(weights, trained.clip.model.logit_scale.exp().item())


def find_checkpoint(path: Path) -> checkpoint.Checkpoint:
    """The checkpoint of a run folder (its newest) or a checkpoint folder.

    Raises:
        ValueError: there is none.
    """
    if (path / "manifest.json").is_file():
        return checkpoint.read(path)
    found = checkpoint.latest(path)
    if found is None:
        raise ValueError(f"{path} is neither a run folder nor a checkpoint: no step-*/manifest.json in it")
    return found


def load_detector(path: Path, device: str | None = None) -> TrainedDetector:
    """A trained detector from its run folder or a checkpoint folder: the averaged weights, in eval mode.

    Args:
        path: either folder.
        device: replaces the device of the run's config.

    Raises:
        ValueError: no intact checkpoint there, its weights do not fit its config, or the CLIP model that the config
            names no longer has the text tower that the detector was trained against.
    """
    found = find_checkpoint(path)
    config = parse_config(found.config, TrainConfig, f"{found.folder}/state.json")
    if device is not None:
        config = config.model_copy(update={"train": config.train.model_copy(update={"device": device})})
    torch.manual_seed(config.train.seed)  # as in training, should the CLIP weights be random
    clip = configured_clip(config.clip)
    check_text_tower(found, clip)
    detector = build_detector(config, clip)
    checkpoint.load_into(detector, found.weights)
    return TrainedDetector(detector.eval(), config, clip, tuple(found.extra.get("classes", ())))


def check_text_tower(found: checkpoint.Checkpoint, clip: Clip) -> None:
    """
    Raises:
        ValueError: the checkpoint's detector does not speak this CLIP model's text space.
    """
    if found.extra.get("text_tower") != text_tower_fingerprint(clip):
        raise ValueError(f"{found.folder} was trained against another text tower than the config's CLIP model has")


def initialise(detector: Detector, init_from: Path, clip: Clip) -> None:
    """Start a new run from a trained detector: a run folder, a checkpoint folder or a weights file.

    Raises:
        ValueError: the weights do not fit, or come from a run with another text tower than `clip` has.
    """
    if init_from.is_file():
        checkpoint.load_into(detector, init_from)
        return
    found = find_checkpoint(init_from)
    check_text_tower(found, clip)
    checkpoint.load_into(detector, found.weights)
