"""Build the data of a config: annotation indexes, labelled pairs, batches."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ovd.choices import DataFormatName
from ovd.clip.load import Clip
from ovd.config.training import FileData, PairsConfig, TrainConfig, WorldData
from ovd.config_files import parse_config
from ovd.data.annotations import exhaustive_truth, load_annotations
from ovd.data.formats.image_names import check_images_exist
from ovd.data.formats.known import FORMATS
from ovd.data.formats.options import NO_OPTIONS, FormatOptions, SharedOptions
from ovd.data.held_out import held_out_images, held_out_names
from ovd.data.index import AnnotationIndex
from ovd.data.loading.buckets import shape_groups
from ovd.data.loading.dataset import ImageSource
from ovd.data.loading.loader import Loading, mix_batches, train_loader
from ovd.data.loading.mosaic import Mosaics
from ovd.data.loading.order import TrainOrder, repeat_factors
from ovd.data.loading.small_objects import SampleSizes, count_small_objects, small_objects
from ovd.data.loading.transforms import augmenting_transform
from ovd.data.report import DataError, DataReport
from ovd.data.verdict import check_trainable
from ovd.data.world.build import TRANSFER_PARTS, build_world
from ovd.data.world.settings import Settings
from ovd.distributed import device_of_rank, is_main, pins_memory, rank, world_size
from ovd.engine import checkpoint
from ovd.engine.notes import SampleCounts
from ovd.selftrain.labelled_pairs import LabelledPairs, limit_per_text, read_kept_labels
from ovd.selftrain.labels import label_files
from ovd.selftrain.ledger import open_labelled_shards
from ovd.shapes import Int64
from ovd.structures import Batch
from ovd.text.bank import TextBank
from ovd.text.encoder import text_tower_fingerprint
from ovd.text.pair_texts import PairTexts
from ovd.warn import warn

PAIRS_SEED_OFFSET = 2**32
"""Offset of the pairs' seed, so that their order and augmentation differ from those of the detection data."""


def data_root() -> Path:
    """Root of data sets' relative paths: OVD_DATA, else DETECTRON2_DATASETS, else ./data."""
    return Path(os.environ.get("OVD_DATA") or os.environ.get("DETECTRON2_DATASETS") or "data")


def load_training_index(config: TrainConfig, report: DataReport | None = None) -> AnnotationIndex:
    """Load the training set, without the novel classes' annotations if `data.classes` is `base`.

    Raises:
        ValueError: the data set has no novel classes, and `data.classes` is `base`.
        VocabularyLeak: a novel class's name would be trained on.
        DataError: F1 there is no class, or no box that could be learned from; F4 all objects are too small at
            `data.size`.
    """
    report = report or DataReport()
    source = config.data.source
    format = FORMATS[source.format if isinstance(source, FileData) else "lvis"]
    split = format.evaluation_split if config.data.classes == "all" else format.base_split
    if split is None:
        with_novel = [name for name, other in FORMATS.items() if other.base_split is not None]
        where = data_root() / source.train_annotations if isinstance(source, FileData) else source.root
        raise ValueError(
            f"{where}: data.classes is `base`, but only the formats {' and '.join(with_novel)} tell novel "
            "from base classes; set data.classes=all"
        )
    index = split(load_whole_training_set(source, report))
    check_trainable(index, report, needs_boxes=config.data.pairs is None)
    count_small_objects(index, report, _sample_sizes(config))
    return index


def small_training_objects(config: TrainConfig, index: AnnotationIndex) -> Int64[np.ndarray, " K"]:
    """Rows of the objects of a training set that no sample has, since they are too small."""
    return small_objects(index, _sample_sizes(config))


def _sample_sizes(config: TrainConfig) -> SampleSizes:
    # The tiles of mosaics are half as large, and here no sample is anything else.
    tile = 0.5 if config.data.mosaic == 1 else 1.0
    return SampleSizes(config.data.size, config.data.scale[1], tile)


@dataclass(frozen=True)
class HeldOut:
    """What a run does not train on, to calibrate on it."""

    index: AnnotationIndex
    """The images, with the vocabulary of the training."""
    names: Bool[np.ndarray, " C"]
    """The classes of the vocabulary whose names are not trained on."""


def hold_out(config: TrainConfig, index: AnnotationIndex) -> tuple[AnnotationIndex, HeldOut | None]:
    """Split a training set into what is trained on and what `train.calibration` holds out of it.

    Of what `data.held_out` leaves out there is no use in this stage.

    Raises:
        ValueError: the training set is too small.
    """
    options = config.train.calibration
    if options is None:
        if config.data.held_out == 0:
            return index, None
        return index.take(np.flatnonzero(~held_out_images(index, config.data.held_out))), None
    images = held_out_images(index, options.images)
    if not images.any():
        raise ValueError(
            f"{index.path} has {len(index)} images to train on, too few to hold some out; set train.calibration=null"
        )
    held_out = HeldOut(index.take(np.flatnonzero(images)), held_out_names(index, options))
    return index.take(np.flatnonzero(~images)), held_out


def _in_data_root(path: Path, key: str) -> Path:
    """Where a path of a config's `data.source` is.

    Raises:
        DataError: F1 it is relative, and not below the data root.
    """
    place = data_root() / path
    if not place.exists() and not path.is_absolute():
        advice = f", and is there from the current folder: give {path.absolute()}" if path.exists() else ""
        raise DataError("F1", f"{place} does not exist: {_starts_at_root(path, key)}{advice}")
    return place


def _starts_at_root(path: Path, key: str) -> str:
    return f"data.source.{key}={path} starts at the data root, {data_root()} (OVD_DATA)"


def load_whole_training_set(source: WorldData | FileData, report: DataReport) -> AnnotationIndex:
    """Load the training set of a source with all its classes."""
    if isinstance(source, WorldData):
        world = build_world(source.root, ("train",), Settings(seed=source.seed))
        annotations = world / "annotations" / "lvis_train.json"
        return load_annotations(annotations, world / "images", format="lvis", report=report)
    return load_annotations(
        _in_data_root(source.train_annotations, "train_annotations"),
        _images_folder(source.train_images, source.format),
        format=source.format,
        report=report,
        options=_format_options(source, source.train_split),
    )


def load_validation_index(config: TrainConfig, report: DataReport | None = None) -> AnnotationIndex | None:
    """Load the validation set with its whole vocabulary and its truth; None if the config has none."""
    match config.data.source:
        case WorldData() as source:
            world = build_world(source.root, ("val",), Settings(seed=source.seed))
            return load_evaluation_index(
                world / "annotations" / "lvis_val.json", world / "images", "lvis", report=report
            )
        case FileData() as source:
            if source.val_annotations is None:
                return None
            images = _images_folder(source.val_images or source.train_images, source.format)
            options = _format_options(source, source.val_split)
            annotations = _in_data_root(source.val_annotations, "val_annotations")
            return load_evaluation_index(annotations, images, source.format, report=report, options=options)


def load_evaluation_index(
    annotations: Path,
    images: Path | None,
    format: DataFormatName,
    *,
    report: DataReport | None = None,
    options: FormatOptions = NO_OPTIONS,
) -> AnnotationIndex:
    """A data set with the vocabulary and the images that its benchmark evaluates; see `load_annotations`.

    Beside its truth it has the exhaustive one, where the format or the embedded world provides it.
    """
    index = load_annotations(annotations, images, format=format, report=report, options=options, with_truth=True)
    assert index.truth is not None
    index = replace(index, exhaustive_truth=exhaustive_truth(index.truth, format))
    return FORMATS[format].evaluation_split(index)


def evaluation_loading(config: TrainConfig) -> Loading:
    """How an evaluation loads its images."""
    return Loading(config.eval.batch_size, config.data.workers)


def check_all_exist(index: AnnotationIndex, source: WorldData | FileData, *, all_needed: bool) -> None:
    """Look for the images of a set, none of which is opened, and say how many are missing.

    Raises:
        DataError: F8 one is missing and `all_needed`, or too many are.
    """
    by_base_name = isinstance(source, FileData) and source.by_base_name
    has_option = "by_base_name" in FORMATS[index.format].options and not by_base_name
    try:
        num_missing = check_images_exist(
            index.path, index.image_files, index.images_root, all_needed=all_needed, has_option=has_option
        )
    except DataError as error:
        raise DataError(error.code, f"{error}{_of_missing_folder(index.images_root, source)}") from None
    if num_missing and is_main():
        where = f"{num_missing} of its {len(index):,} images are missing, and will be left out and counted"
        warn(f"{index.path}: {where}", code="F8")


def _of_missing_folder(root: Path | None, source: WorldData | FileData) -> str:
    """Where the config says that the images are, to end an error with; empty where the folder is there."""
    if root is None or root.is_dir() or isinstance(source, WorldData):
        return ""
    for key, folder in (("train_images", source.train_images), ("val_images", source.val_images)):
        if folder is not None and not folder.is_absolute() and data_root() / folder == root:
            return f": {_starts_at_root(folder, key)}"
    return ""


def _images_folder(folder: Path | None, format: DataFormatName) -> Path | None:
    if folder is None and not FORMATS[format].finds_images:
        raise ValueError(f"data.source.train_images is missing: format {format} needs the folder of images")
    return None if folder is None else data_root() / folder


def _format_options(source: FileData, split: str | None) -> FormatOptions:
    shared = {field.name: getattr(source, field.name) for field in fields(SharedOptions)}
    if source.class_names is not None:
        shared["class_names"] = data_root() / source.class_names
    return FormatOptions(**shared, split=split)


def pair_shards_folder(config: PairsConfig, source: WorldData | FileData) -> Path:
    """Folder of the pairs' shards; the embedded world's are drawn on first use.

    Raises:
        ValueError: the config has no folder, and its data is not the world.
    """
    if config.shards is not None:
        return data_root() / config.shards
    if isinstance(source, FileData):
        raise ValueError("data.pairs.shards is missing: only the embedded world has pairs of its own")
    return build_world(source.root, ("pairs",), Settings(seed=source.seed)) / "pairs"


def load_labelled_pairs(config: PairsConfig, source: WorldData | FileData, clip: Clip, first_id: int) -> LabelledPairs:
    """Load the pairs to train on. A warning counts the shards that have no labels.

    Args:
        first_id: id of the first of their texts; lower ids are those of the training vocabulary.

    Raises:
        ValueError: the labels were made with another text tower or from other shards, or nothing passes the filters.
    """
    files = label_files(config.labels)
    folder = pair_shards_folder(config, source)
    text_tower = text_tower_fingerprint(clip)
    shards = open_labelled_shards(folder, files, text_tower=text_tower)
    if (unlabelled := shards.left_out) and is_main():
        num_shards = len(unlabelled) + len(shards.file_names)
        warn(f"{len(unlabelled)} of {num_shards} shards of {folder} have no labels, the first: {unlabelled[0]}")
    kept, counts = read_kept_labels(files, config, shards)
    banks = (TextBank(file, text_tower=text_tower) for file in files)
    texts = PairTexts(banks, [of_shard.pair_counts for of_shard in kept], first_id=first_id)
    num_left = counts.pop("kept")
    if config.max_per_text is not None:
        kept, counts["max_per_text"] = limit_per_text(kept, texts, config.max_per_text)
    counts["kept"] = num_left - counts["max_per_text"]
    return LabelledPairs(shards, kept, texts, with_boxes=config.use == "boxes", box_counts=counts)


def samples_per_step(config: TrainConfig) -> SampleCounts:
    """Numbers of samples in a batch."""
    batch_size = config.train.batch_size
    if config.data.pairs is None:
        return SampleCounts(images=batch_size)
    num_paired = min(batch_size - 1, max(1, round(batch_size * config.data.pairs.share)))
    return SampleCounts(images=batch_size - num_paired, pairs=num_paired)


def samples_drawn(found: checkpoint.Checkpoint) -> SampleCounts:
    """Numbers of samples that a run and its earlier stages have drawn."""
    config = parse_config(found.config, TrainConfig, f"{found.folder}/state.json")
    first, per_step = found.notes.first_samples, samples_per_step(config)
    return SampleCounts(
        images=first.images + found.step * per_step.images, pairs=first.pairs + found.step * per_step.pairs
    )


def training_batches(
    config: TrainConfig,
    index: AnnotationIndex,
    pairs: LabelledPairs | None = None,
    *,
    first_samples: SampleCounts,
    size_divisor: int,
) -> Callable[[int], Iterator[Batch]]:
    """A function that gives the batches from a step on; with pairs, each batch has the configured share of them.

    Args:
        first_samples: what earlier stages have drawn; this one continues the order after them.
        size_divisor: divisor of the image sides that the detector takes.
    """
    data = config.data
    transform = augmenting_transform(data, size=data.size)
    seed, per_step = config.train.seed, samples_per_step(config)
    repeat = repeat_factors(index, data.repeat_threshold)
    groups, loader_options = None, dict[str, Any]()
    if data.shape_groups > 1:
        groups, shapes = shape_groups(
            index.image_sizes, data.shape_groups, size=data.size, largest_scale=data.scale[1], divisor=size_divisor
        )
        loader_options = {"shapes": shapes}
    if data.mosaic:
        tile_transform = augmenting_transform(data, size=max(1, data.size // 2))
        loader_options = {"mosaics": Mosaics(mosaic=data.mosaic, weights=repeat, tile_transform=tile_transform)}

    order = TrainOrder(
        num_images=len(index),
        repeat=repeat,
        seed=seed,
        batch_size=per_step.images,
        first_sample=first_samples.images,
        groups=groups,
    )

    def load(source: ImageSource, order: TrainOrder, start: int, **more: Any) -> Iterator[Batch]:
        steps, part = range(start, config.train.steps), (rank(), world_size())
        return train_loader(
            source, order, transform, steps, workers=data.workers, part=part, size_divisor=size_divisor, **more
        )

    if pairs is None:
        pin_memory = pins_memory(device_of_rank(config.train.device))
        return lambda start: load(index, order, start, pin_memory=pin_memory, **loader_options)
    order_of_pairs = TrainOrder(
        num_images=len(pairs),
        repeat=np.ones(len(pairs)),
        seed=seed + PAIRS_SEED_OFFSET,
        batch_size=per_step.pairs,
        first_sample=first_samples.pairs,
    )

    def batches_from(start: int) -> Iterator[Batch]:
        # Not in pinned memory: they are joined into a new tensor.
        return mix_batches(load(index, order, start, **loader_options), load(pairs, order_of_pairs, start))

    return batches_from


def draw_world(config: TrainConfig) -> Path:
    """Draw the missing parts of the config's embedded world, except the pretraining pairs; its folder.

    Raises:
        ValueError: the config's data is not the world.
    """
    source = config.data.source
    if not isinstance(source, WorldData):
        raise ValueError("this works on the embedded world only: data.source.kind=world")
    return build_world(source.root, ("train", "val", "pairs", *TRANSFER_PARTS), Settings(seed=source.seed))
