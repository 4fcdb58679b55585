"""Typed, strict configs: YAML files with `base:` inheritance and dotted overrides on the command line.

    config = load_config(Path("configs/quickstart.yaml"), ["train.steps=50"], TrainConfig)

Every key has a type and a meaning here; an unknown key is an error that names the nearest one. Values are plain data:
no import path, no code and no environment variable is ever read from a config.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ovd.choices import (
    Activation,
    AssignmentRule,
    ClassSplit,
    DataFormatName,
    Engine,
    Head,
    InitState,
    Keep,
    LearningRateDecay,
    NegativeRule,
    PairUse,
    Place,
    Precision,
    QuerySource,
)
from ovd.data.format_options import VocOptions
from ovd.model.detection_options import DetectionOptions
from ovd.plain_yaml import read_mapping
from ovd.section import Section
from ovd.text.sources import TextSources

MAX_BASE_DEPTH = 10

RENAMED = {
    "bank.synonyms": "bank.num_synonyms",
    "data.colour": "data.color",
    "detector.freeze_tower": "detector.freeze_backbone",
    "train.tower_rate": "train.backbone_rate",
}
"""Keys of earlier versions, and what they are called now."""


class ConfigError(ValueError):
    """A config that cannot be used; the message names the file, the key and the nearest valid one."""


def default_kind(kind: str) -> BeforeValidator:
    """Lets a section that comes in several kinds be written without `kind`, as the default one."""
    return BeforeValidator(lambda value: {"kind": kind, **value} if isinstance(value, dict) else value)


class ClipConfig(Section):
    name: str = "tiny"
    """`tiny`, a folder with an open_clip_config.json, or a name of open_clip.list_models()."""
    weights: str | None = None
    """For a name: one of its tags, a local file, or `random`. `tiny` and a folder bring their own."""
    activation: Activation | None = None
    """For a local file, which does not say: what its weights were trained with."""
    mean: tuple[float, float, float] | None = None
    """For a local file: RGB in 0..1, of the images its weights were trained on; with `std`. May be left out where
    open_clip has weights of this name that agree on one."""
    std: tuple[float, float, float] | None = None


class BankConfig(TextSources):
    """The text bank: V variants of every class, of which a training step draws one (text augmentation)."""

    file: Path | None = None
    """A bank that tools/build_text_bank.py made, with at least the training classes; built on first use if not given.
    Its variants are then what it was made with; of the settings below only `noise` still counts in training, and
    `templates` in evaluation."""
    paraphrases: Path | None = None
    """A JSON file of texts about classes, {"class name": ["a text", ...]}; each becomes a training variant as it is,
    and a class with fewer than others gets its prompts again instead."""
    noise: NonNegativeFloat = 0.0
    """Gaussian noise added to a sampled variant, as a fraction of its length; renormalized after."""
    cache: Path = Path("data/text_banks")
    """Folder of the banks that are built on first use."""


class GatedShortcutsConfig(Section):
    kind: Literal["gated"] = "gated"
    places: Annotated[tuple[Place, ...], Field(min_length=1)] = ("pyramid", "head")
    """Where the learned path joins the dense feature."""
    per_channel: bool = True
    """One gate for every text-space channel, or one for all."""
    filter_size: Literal[1, 3, 5, 7] = 3
    """Side of the square of points that the filter over the head's shortcut looks at."""


class NoShortcutsConfig(Section):
    kind: Literal["none"] = "none"


class DetectorConfig(Section):
    shortcuts: Annotated[
        GatedShortcutsConfig | NoShortcutsConfig, Field(discriminator="kind"), default_kind("gated")
    ] = GatedShortcutsConfig()
    channels: Annotated[int, Field(gt=0, multiple_of=32)] = 256
    """Width of the learned path: pyramid and head."""
    num_convs: PositiveInt = 4
    """3 x 3 convolutions in each of the head's two towers."""
    head: Head = "fcos"
    """Two towers of convolutions, or TOOD's head, whose tasks share them."""
    freeze_backbone: bool = False
    frozen_layers: NonNegativeInt = 0
    """Of the backbone, from its input on, do not learn: the stem, then blocks."""
    recompute: bool = False
    """Recompute the backbone's activations in the backward pass: less memory, about a third more time."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth in the backbone's last block, falling to 0 at its first."""
    window: NonNegativeInt = 0
    """Side of the squares of patches that a transformer's attention stays within; 0 for attention to all."""
    global_blocks: NonNegativeInt = 4
    """With `window`: so many blocks, evenly spread, attend to all."""


class WorldData(Section):
    """The embedded world, drawn on first use."""

    kind: Literal["world"] = "world"
    root: Path = Path("data/world")
    seed: NonNegativeInt = 0


class FileData(VocOptions):
    """Annotation files of a data set. Relative paths start at the data root: OVD_DATA, else DETECTRON2_DATASETS, else
    ./data."""

    kind: Literal["files"] = "files"
    format: DataFormatName
    """`coco` is any file in COCO's form; `coco_zero_shot` COCO's with the split in 48 base and 17 novel classes; `voc`
    XML files; `yolo` text labels. data/README.md has the layout of each."""
    train_annotations: Path
    train_images: Path | None = None
    """Folder of images; only `yolo` may leave it out, for the one that data.yaml names."""
    val_annotations: Path | None = None
    val_images: Path | None = None
    """`train_images` if not given."""
    train_split: str | None = None
    """`yolo`: the key of data.yaml that lists the training images; `train` if not given."""
    val_split: str | None = None
    """`yolo`: the key that lists the validation images; `val` if not given."""


class BoxFilters(Section):
    """A pseudo-box must pass all of these. The defaults keep an image's best box whatever its score, as published."""

    keep: Keep = "top1"
    """Of an image's boxes that pass the other filters: the best; the best of each text; the same, but no two texts at
    one place; or all."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Lowest score."""
    min_size_px: NonNegativeFloat = 0.0
    """Least shorter side, in pixels of the pair's image."""
    max_relative_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest area, as a fraction of the image's."""
    caption_match: bool = False
    """The text must occur in the pair's caption: for texts that are the same in every image."""


class PairsConfig(BoxFilters):
    """Image-text pairs beside the detection data: self-training, or image-level labels."""

    labels: Path
    """Folder of labels that tools/pseudo_label.py made; like all that a run makes, relative to the current folder."""
    shards: Path | None = None
    """Folder of the pairs' tar shards, relative to the data root; the embedded world's own if not given."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of pairs among a batch's images."""
    use: PairUse = "boxes"
    """`boxes` trains on the teacher's boxes that pass the filters; `image_labels` on the texts alone, as true of the
    whole image."""
    max_per_text: PositiveInt | None = None
    """Over all pairs, at most this many boxes of a text, the best scores first."""
    sampled_texts: NonNegativeInt = 100
    """Texts drawn besides those of the batch, by number of pairs to the power 0.5, as negatives of its pairs."""
    box_loss: bool = False
    """Whether the teacher's boxes are trained on by the box branch, too. If not, only their classes are, and where
    objects end is learned from people's boxes."""
    image_label_weight: PositiveFloat = 0.1
    """Weight of the loss of `image_labels`."""


class DataConfig(Section):
    source: Annotated[WorldData | FileData, Field(discriminator="kind"), default_kind("world")] = WorldData()
    classes: ClassSplit = "base"
    """`base` removes the annotations of the novel classes (LVIS's rare ones, the 17 of COCO's zero-shot split) and
    checks that none of their names is trained on."""
    size: PositiveInt = 192
    """Longest side of an image in pixels, in training (before scale jitter) and evaluation."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25)
    """Smallest and largest factor of `size` that an image is resized to, drawn for each; what is then larger than
    `size` is cropped. (0.1, 2.0) is large-scale jitter (arXiv:2012.07177), (0.6, 1.0) multi-scale training without
    crops."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    color: NonNegativeFloat = 0.2
    """Strength of brightness, contrast, saturation and hue jitter."""
    mosaic: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Chance that a sample is made of four images of half the size, one from its turn and three drawn at random."""
    repeat_threshold: NonNegativeFloat = 0.001
    """LVIS's repeat-factor sampling; 0 switches it off."""
    shape_groups: PositiveInt = 1
    """So many groups of images by aspect ratio: batches are of one group as far as its size allows, and come in the
    groups' shapes and one more that holds any image."""
    pairs: PairsConfig | None = None
    """Trained on besides `source`; none by default."""
    workers: NonNegativeInt = 1
    """Processes that load ahead, for `source` and as many for `pairs`."""


class TrainSection(Section):
    steps: PositiveInt
    batch_size: PositiveInt = 16
    """Images of an optimizer step, on all ranks together."""
    accumulate: PositiveInt = 1
    """Parts that a rank takes its images in, one after another: less memory, the same gradients."""
    seed: NonNegativeInt = 0
    learning_rate: PositiveFloat = 1e-3
    backbone_rate: NonNegativeFloat = 0.1
    """Learning rate of the backbone, as a factor."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer of the backbone learns at this much of the rate of the next one."""
    gate_rate: NonNegativeFloat = 1.0
    """Learning rate of the shortcuts' gates, as a factor."""
    logit_rate: NonNegativeFloat = 10.0
    """Learning rate of the logit's scale and threshold, as a factor."""
    weight_decay: NonNegativeFloat = 0.05
    warmup_steps: NonNegativeInt = 50
    decay: LearningRateDecay = "cosine"
    clip_norm: PositiveFloat = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    assignment: AssignmentRule = "fcos"
    """Which points answer for a box: FCOS's rules with centre sampling, ATSS, or those that predict it best (TOOD)."""
    atss_steps: NonNegativeInt = 1000
    """With `task_aligned`: so many first steps go by ATSS, until predictions mean something."""
    negatives: NegativeRule = "sampled"
    """Which class rows count as negatives of an image: all rows of the step, or only verified ones (federated
    `strict`); `all` takes the whole vocabulary as rows, for exhaustively annotated data."""
    sampled_classes: NonNegativeInt = 100
    """Classes drawn besides those in the batch, by image count to the power 0.5."""
    precision: Precision = "auto"
    device: str = "auto"
    """`auto` is the GPU where there is one, else the CPU."""
    threads: PositiveInt = 2
    """CPU threads; a result's bits depend on it."""
    compile: bool = False
    """Compile pyramid and head with torch.compile, on a GPU the class loss too: slow to start, then faster steps
    (docs/results.md). On a CPU it needs a C++ compiler."""
    save_every: PositiveInt = 250
    keep_checkpoints: PositiveInt = 2
    eval_every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the curves, too; needs the package wandb."""


class EnsembleConfig(Section):
    """Class probability = detector's ** (1 - weight) x CLIP's ** weight (F-VLM, arXiv:2209.15639)."""

    base: Annotated[float, Field(ge=0, le=1)] = 0.35
    """Weight of CLIP for classes that were trained on."""
    novel: Annotated[float, Field(ge=0, le=1)] = 0.65


class EvalSection(DetectionOptions):
    batch_size: PositiveInt = 16
    """Images are padded to the largest of their batch, which moves scores a little (GroupNorm, position embeddings)."""
    compile: bool = False
    """Compile pyramid, head and the scores of post-processing where a whole data set is evaluated."""
    engine: Engine = "hotcoco"
    """What computes the metrics."""
    ensemble: EnsembleConfig | None = None
    """Rank by the detector's scores and CLIP's; needs detector.freeze_backbone, so that CLIP's part is still CLIP."""


class TrainConfig(Section):
    """Training a detector: `tools/train.py`."""

    output: Path
    """Run folder: checkpoints, logs, metrics, pictures."""
    clip: ClipConfig = ClipConfig()
    init_from: Path | None = None
    """Start from a trained detector (a run folder, a checkpoint folder or a weights file) instead of CLIP alone."""
    init_state: InitState = "averaged"
    """What `init_from` gives: the averaged weights, for a new start; or all that a resumed run would have, to go on
    without a jolt: the optimizer's moments, and the images that were not drawn yet."""
    bank: BankConfig = BankConfig()
    detector: DetectorConfig = DetectorConfig()
    data: DataConfig = DataConfig()
    train: TrainSection
    eval: EvalSection = EvalSection()

    @model_validator(mode="after")
    def _settings_go_together(self) -> "TrainConfig":
        if self.eval.ensemble is not None and not self.detector.freeze_backbone:
            raise ValueError("eval.ensemble needs detector.freeze_backbone: a trained backbone's scores are not CLIP's")
        if self.data.mosaic and self.data.shape_groups > 1:
            raise ValueError("data.mosaic does not go with data.shape_groups: a mosaic has none of their shapes")
        if self.data.mosaic and self.train.negatives == "strict":
            raise ValueError("data.mosaic does not go with train.negatives=strict: no class is verified in all four")
        if self.init_state == "training" and self.init_from is None:
            raise ValueError("init_state=training needs init_from: the run to go on from")
        return self


class PretrainConfig(Section):
    """Pretraining the tiny CLIP on the world's image-text pairs: `tools/pretrain_clip.py`."""

    output: Path
    data: WorldData = WorldData()
    steps: PositiveInt
    batch_size: PositiveInt = 256
    crop: PositiveInt = 96
    """Side of the random crop of a pair's image."""
    seed: NonNegativeInt = 0
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.05
    warmup_steps: NonNegativeInt = 100
    clip_norm: PositiveFloat = 1.0
    precision: Precision = "auto"
    threads: PositiveInt = 2
    save_every: PositiveInt = 200


class LabelOptions(Section):
    """What a teacher is asked for in image-text pairs, and how much of what it finds is kept."""

    queries: QuerySource
    """The whole caption, its n-grams, its noun phrases, or the same class names in every image."""
    classes: tuple[str, ...] = ()
    """With queries=classes: the names."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Boxes that score no more are left out. Keep it low: filters come later."""
    max_boxes: PositiveInt = 100
    """Boxes kept per image, the best ones."""
    batch_size: PositiveInt = 16
    """Pairs of a shard that go to the teacher together."""

    @model_validator(mode="after")
    def _classes_go_with_queries(self) -> "LabelOptions":
        if (self.queries == "classes") != bool(self.classes) or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"queries {self.queries!r} with {len(self.classes)} class names: `classes` needs some, each once, and "
                "the other kinds of queries none"
            )
        return self


class LabelsConfig(LabelOptions):
    """The labels of a row of an ablation."""

    shards: PositiveInt | None = None
    """Only the first so many; all if not given."""


class AblationRow(Section):
    """One row of the table: a training run, or a teacher's and then its student's."""

    config: Path
    """Of the run, or of the student: `init_from` and `data.pairs.labels` are filled in."""
    teacher: Path | None = None
    """Config of a first stage, shared by all rows that name it."""
    labels: LabelsConfig | None = None
    """What the teacher does between the two."""

    @model_validator(mode="after")
    def _labels_have_a_teacher(self) -> "AblationRow":
        if (self.teacher is None) != (self.labels is None):
            raise ValueError("a row has both `teacher` and `labels`, or neither")
        return self


class AblationConfig(Section):
    """A table of configs x seeds: `tools/ablate.py`."""

    records: Path
    """JSON lines, one a finished run; the table and the pictures are made of them."""
    runs: Path
    """Folder of the run folders."""
    picture: Path
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    """Each draws the world's scenes and rare split, and seeds the training."""
    lengths: tuple[PositiveInt, ...] = ()
    """Train every row for each of these numbers of steps instead of its config's; tables and picture set them side by
    side."""
    rows: dict[str, AblationRow]


ConfigType = TypeVar("ConfigType", bound=Section)


def load_config(path: Path, overrides: list[str], kind: type[ConfigType]) -> ConfigType:
    """Read a YAML config, the ones it is based on, and overrides of the form `train.steps=100`.

    Raises:
        ConfigError: unreadable YAML, an unknown key, a value of the wrong type, a circle of bases.
    """
    values = _read_with_bases(path, ())
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, kind, str(path))


def parse_config(values: dict[str, Any], kind: type[ConfigType], source: str) -> ConfigType:
    """Check plain data against a config type; `source` names it in errors."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = {".".join(map(str, problem["loc"])): _explain(problem, kind) for problem in error.errors()}
        renamed = [f"{key} is now called {RENAMED[key]}" for key in problems if key in RENAMED]
        lines = [f"keys of an earlier version: {'; '.join(renamed)}"] if renamed else []
        lines += [problem for key, problem in problems.items() if key not in RENAMED]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in seen or len(seen) >= MAX_BASE_DEPTH:
        raise ConfigError(f"{path}: `base:` runs in a circle or deeper than {MAX_BASE_DEPTH} files")
    values = _read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: `base:` is {base!r}; it must be the path of a config, relative to this one")
    return _merge(_read_with_bases(path.parent / base, (*seen, resolved)), values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return read_mapping(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings are merged key by key, unless they choose another `kind`."""
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            same_kind = value.get("kind", before.get("kind")) == before.get("kind")
            value = _merge(before, value) if same_kind else value
        merged[key] = value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: write it as key=value, for example train.steps=100")
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: not a plain YAML value: {error}") from None
    if last == "kind" and section.get("kind") != value:
        section.clear()  # the settings of another kind do not apply
    section[last] = value


def _explain(problem: Any, kind: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{location}: {problem['msg']} (got {problem['input']!r})"
    known = _known_keys(kind)
    nearest = difflib.get_close_matches(str(problem["loc"][-1]), [key.rsplit(".", 1)[-1] for key in known], n=1)
    hint = next((key for key in known if nearest and key.rsplit(".", 1)[-1] == nearest[0]), None)
    return f"unknown key {location}" + (f"; did you mean {hint}?" if hint else "")


def _known_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(prefix + name)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                keys += _known_keys(option, f"{prefix}{name}.")
    return keys


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, as they are given on a command line."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
