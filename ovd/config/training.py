"""Settings of training a detector, and of its evaluation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ovd.choices import (
    Activation,
    AssignmentRule,
    ClassSplit,
    DataFormatName,
    Engine,
    ExpertPart,
    Head,
    InitState,
    Keep,
    LearningRateDecay,
    NegativeRule,
    PairUse,
    Place,
    Precision,
)
from ovd.data.formats.options import SharedOptions
from ovd.data.held_out import CalibrationOptions
from ovd.data.loading.augmentation_options import AugmentationOptions
from ovd.model.detection_options import DetectionOptions
from ovd.model.region_options import RegionOptions
from ovd.section import Section
from ovd.text.sources import TextSources

DEFAULT_KINDS = {"shortcuts": "gated", "source": "world"}
"""Kind of each section that comes in several kinds, where its `kind` is missing."""


def default_kind(section: str) -> BeforeValidator:
    """A validator that fills in a missing `kind` of a section."""
    kind = DEFAULT_KINDS[section]
    return BeforeValidator(lambda value: {"kind": kind, **value} if isinstance(value, dict) else value)


class ClipConfig(Section):
    """The CLIP model whose backbone and text tower the detector uses."""

    name: str = "tiny"
    """`tiny` (the toolkit's own), a folder with an open_clip_config.json, or a name from open_clip.list_models()."""
    weights: str | None = None
    """Required for a name from open_clip: one of its tags, a local file, or `random`. `tiny` and a folder include their
    weights."""
    activation: Activation | None = None
    """Activation that the weights of a local file were trained with; the file does not record it. Not needed for timm
    backbones."""
    mean: tuple[float, float, float] | None = None
    """RGB mean, in 0..1, that images were normalized with when the weights of a local file were trained; given together
    with `std`. Not needed where open_clip's weights of this name all have the same normalization."""
    std: tuple[float, float, float] | None = None
    """RGB standard deviation, as `mean`."""


class BankConfig(TextSources):
    """The text bank: V text variants per class, of which a training step draws one (text augmentation)."""

    file: Path | None = None
    """Bank file from `ovd text-bank` with at least the training classes; by default a bank is built on first use. The
    variants of a file are fixed: of the other settings only `noise` applies in training, and `templates` and
    `num_synonyms` in evaluation."""
    paraphrases: Path | None = None
    """JSON file of texts about classes, {"class name": ["a text", ...]}. Each text is a training variant, without a
    template; a class with fewer texts than the others repeats its prompts instead."""
    noise: NonNegativeFloat = 0.0
    """Length of the Gaussian noise added to a drawn variant, relative to the variant; the sum is normalized again."""
    cache: Path = Path("data/text_banks")
    """Folder of the banks that are built on first use."""


class GatedShortcutsConfig(Section):
    """Class embeddings are the dense CLIP feature plus a gated learned path (model/gates.py)."""

    kind: Literal["gated"] = "gated"
    places: Annotated[tuple[Place, ...], Field(min_length=1)] = ("pyramid", "head")
    """Places at which the learned path is added to the dense feature."""
    per_channel: bool = True
    """One gate per channel of the text space; if false, one gate for all channels."""
    filter_size: Literal[1, 3, 5, 7] = 3
    """Side, in points, of the square that the filter over the head's shortcut covers."""


class NoShortcutsConfig(Section):
    """Class embeddings are a projection of the head's class features, as in an ordinary detector."""

    kind: Literal["none"] = "none"


class DetectorConfig(Section):
    """The detector's architecture, and how its backbone is trained."""

    shortcuts: Annotated[
        GatedShortcutsConfig | NoShortcutsConfig, Field(discriminator="kind"), default_kind("shortcuts")
    ] = GatedShortcutsConfig()
    """How class embeddings are formed: kind `gated` (default) or `none`."""
    channels: Annotated[int, Field(gt=0, multiple_of=32)] = 256
    """Width of the learned path (pyramid and head), a multiple of 32."""
    num_convs: PositiveInt = 4
    """3 x 3 convolutions in each of the head's two towers; with `task_aligned`, in its one stack for both tasks."""
    head: Head = "fcos"
    """`fcos` has a class and a box tower of convolutions; `task_aligned` is TOOD's head, whose tasks share them."""
    freeze_backbone: bool = False
    """Train no parameter of the backbone, so that its dense feature stays CLIP's."""
    frozen_layers: NonNegativeInt = 0
    """Number of backbone layers frozen from the input: the stem, then blocks."""
    recompute: bool = False
    """Recompute the backbone's activations in the backward pass: less memory, about a third more time."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth rate of the backbone's last block, falling linearly to 0 at its first; in training only."""
    window: NonNegativeInt = 0
    """Side, in patches, of the windows that a transformer backbone's attention is limited to; 0 is global attention."""
    global_blocks: NonNegativeInt = 4
    """Number of blocks, evenly spread, that keep global attention; used with `window`."""


class WorldData(Section):
    """The embedded world: a small synthetic data set in LVIS's form, drawn on first use."""

    kind: Literal["world"] = "world"
    root: Path = Path("data/world")
    """Folder of the drawn worlds, relative to the current folder."""
    seed: NonNegativeInt = 0
    """Seed of the scenes and of the rare split."""


class FileData(Section, SharedOptions):  # type: ignore[misc]  # a Section is frozen, too, which mypy does not see
    """Annotation files of a data set. Relative paths start at the data root: OVD_DATA, else DETECTRON2_DATASETS, else
    ./data."""

    kind: Literal["files"] = "files"
    format: DataFormatName
    """`coco` is any file in COCO's form; `coco_zero_shot` COCO's with the split in 48 base and 17 novel classes; `voc`
    XML files; `yolo` text labels. data/README.md has the layout of each."""
    train_annotations: Path
    train_images: Path | None = None
    """Folder of the training images; only `yolo` may leave it out, for the one that data.yaml names."""
    val_annotations: Path | None = None
    """Annotation file of the validation set; without one, training does not evaluate."""
    val_images: Path | None = None
    """Folder of the validation images; by default that of the training images."""
    train_split: str | None = None
    """`yolo`: the key of data.yaml that lists the training images; `train` if not given."""
    val_split: str | None = None
    """`yolo`: the key that lists the validation images; `val` if not given."""


class BoxFilters(Section):
    """Filters of pseudo-boxes, all of which a box must pass. The defaults keep the best box per image at any score, as
    published."""

    keep: Keep = "top1"
    """Boxes kept per image, of those that pass the other filters: `top1` the best; `top1_per_text` the best per text;
    `one_to_one` the best per text with no two texts at one place; `all`."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum score."""
    min_size_px: NonNegativeFloat = 0.0
    """Minimum length of the shorter side, in pixels of the pair's image."""
    max_relative_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Maximum area, as a fraction of the image's."""
    caption_match: bool = False
    """Require a box's text to occur in the pair's caption; for labels whose queries are the same in every image."""


class PairsConfig(BoxFilters):
    """Image-text pairs that are trained on beside the detection data: self-training, or image-level labels."""

    labels: Path
    """Folder of labels from `ovd label-pairs`; like all outputs of a run, relative to the current folder."""
    shards: Path | None = None
    """Folder of the pairs' tar shards, relative to the data root; by default the embedded world's own."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of pairs in a batch, rounded so that it holds at least one pair and one other image."""
    use: PairUse = "boxes"
    """`boxes` trains on the teacher's boxes that pass the filters; `image_labels` trains on the pair's texts as labels
    of the whole image."""
    max_per_text: PositiveInt | None = None
    """Maximum number of boxes per text over all pairs, those with the best scores; no limit by default."""
    sampled_texts: NonNegativeInt = 100
    """Number of texts drawn besides the batch's, with probability proportional to (number of pairs) ** 0.5, as
    negatives of its pairs."""
    box_loss: bool = False
    """Train the box branch on the teacher's boxes, too. If false, they train only the class branch, and localization is
    learned from human annotations."""
    image_label_weight: PositiveFloat = 0.1
    """Weight of the loss of `use: image_labels`."""


class DataConfig(AugmentationOptions):
    """Training and validation data, and the augmentation of training images."""

    source: Annotated[WorldData | FileData, Field(discriminator="kind"), default_kind("source")] = WorldData()
    """The detection data: kind `world` (default) or `files`."""
    classes: ClassSplit = "base"
    """`base` removes the annotations of the novel classes (LVIS's rare ones, the 17 of COCO's zero-shot split) and
    checks that none of their names is trained on; `all` trains on every class."""
    size: PositiveInt = 192
    """Longest side of an image in pixels, in training (before scale jitter) and evaluation."""
    mosaic: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a sample is a mosaic of four images at half the size: its own image and three drawn at random.
    Not with `shape_groups` or `train.negatives: strict`."""
    held_out: NonNegativeInt = 0
    """Number of training images that are left out, for a stage before one with `train.calibration`: the same that this
    holds out, so that no stage trains on what scores are calibrated on."""
    repeat_threshold: NonNegativeFloat = 0.001
    """Threshold of LVIS's repeat-factor sampling, a share of the training images; 0 switches it off."""
    shape_groups: PositiveInt = 1
    """Number of groups of images by aspect ratio. Batches are drawn from one group as far as its size allows, and are
    padded to the shape of a group or to one shape that holds any image; with `pairs`, to one that holds these, too. In
    the epoch in which `init_state: training` goes on with another batch size, some images come
    twice and as many not at all."""
    pairs: PairsConfig | None = None
    """Image-text pairs that are trained on besides `source`; none by default."""
    workers: NonNegativeInt = 1
    """Number of loader processes for `source`, and as many again for `pairs`; 0 loads in the training process."""


class TrainSection(Section):
    """Optimization, assignment, negatives, and what a run saves."""

    steps: PositiveInt
    """Number of optimizer steps."""
    batch_size: PositiveInt = 16
    """Images per optimizer step, over all ranks."""
    accumulate: PositiveInt = 1
    """Number of parts that a rank's images are processed in, one after another: less memory, the same gradients
    (nearly, where a loss depends on predictions: `task_aligned`, the distillations)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of the data, augmentation and sampling."""
    deterministic: bool = False
    """On a GPU, compute with the same bits every time, so that a resumed run is the same as an uninterrupted one to the
    bit, too (docs/results.md has the cost). On a CPU it is always so."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate (AdamW)."""
    backbone_rate: NonNegativeFloat = 0.1
    """Factor of `learning_rate` for the backbone."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Layer-wise decay: learning rate of each backbone layer, as a factor of the next layer's."""
    gate_rate: NonNegativeFloat = 1.0
    """Factor of `learning_rate` for the shortcuts' gates."""
    logit_rate: NonNegativeFloat = 10.0
    """Factor of `learning_rate` for the logit's scale and threshold."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of matrices and kernels; biases, norms, a transformer's tokens and position embeddings, gates and
    the logit's parameters have none."""
    warmup_steps: NonNegativeInt = 50
    """Steps of linear warm-up, at most `steps`."""
    decay: LearningRateDecay = "cosine"
    """Schedule after the warm-up: `cosine` down to 1 % of the peak; `step`, two equal drops to 1 %, after 2/3 and 8/9
    of the steps; `constant`."""
    clip_norm: PositiveFloat = 1.0
    """Maximum L2 norm of all gradients together."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the average over the weights (EMA), which is what is evaluated; it is lower in the first steps."""
    assignment: AssignmentRule = "fcos"
    """How points are matched to boxes: `fcos` with center sampling, `atss`, or `task_aligned` (TOOD), which takes the
    points that predict a box best."""
    atss_steps: NonNegativeInt = 1000
    """Number of first steps that use ATSS, since early predictions are not informative; used with `task_aligned`."""
    negatives: NegativeRule = "sampled"
    """Which classes are negatives of an image: `sampled` all classes of the step; `strict` only those verified to be
    absent (federated); `all` the whole vocabulary, for exhaustively annotated data."""
    sampled_classes: NonNegativeInt = 100
    """Number of classes drawn besides the batch's, with probability proportional to (number of images) ** 0.5; used
    with `negatives: sampled`."""
    pair_negatives: bool = False
    """Use the texts of `data.pairs` as negatives of annotated images, too, unless they may mean a class that is there.
    Otherwise novel names are negatives in pairs alone, and then are found on the background."""
    region_distillation: RegionOptions | None = None
    """A further loss, `distill`, that pulls class embeddings at predicted boxes towards the original CLIP's embeddings
    of these boxes' crops, so that training does not lead far from CLIP; `{}` is on with defaults. Off by default."""
    start_distillation: NonNegativeFloat = 0.0
    """Weight of the losses `keep_class`, `keep_quality` and `keep_box`, which pull predictions at points without a box
    towards those of the detector of `init_from`, so that fine-tuning forgets less. 0 leaves them out."""
    name_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the class names that are left out of a step, drawn anew in each. The boxes of these classes are trained
    on as those of `calibration.names` are."""
    calibration: CalibrationOptions | None = None
    """Hold images and names out of the training, and at its end calibrate on them: against the bias towards trained
    names, and so that scores are probabilities; `{}` is on with defaults. Off by default."""
    precision: Precision = "auto"
    """`auto` is bf16 where the hardware is fast at it, else float32."""
    device: str = "auto"
    """`auto` is the GPU where there is one, else the CPU."""
    threads: PositiveInt = 2
    """Number of CPU threads; the bits of a result depend on it."""
    compile: bool = False
    """Compile pyramid and head with torch.compile: a slow start, then somewhat faster steps (docs/results.md), in the
    place of kernels and CUDA graphs. On a CPU it needs a C++ compiler."""
    cuda_graphs: bool = True
    """On a GPU, launch forward and backward pass as a whole: for one process, with `accumulate` 1, and without
    `compile` and `detector.recompute`. The first batch of each shape takes some seconds more."""
    save_every: PositiveInt = 250
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints kept on disk, the newest ones."""
    eval_every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    patience: NonNegativeInt = 0
    """End the run after this number of evaluations without a better AP on the validation set, with the averaged weights
    of the best one as its result; for few images, on which long trainings overfit. The AP of a set that has chosen is
    a little too high. 0 takes all steps."""
    wandb: str | None = None
    """Weights & Biases project that gets the curves, too; needs the package wandb."""


class EnsembleConfig(Section):
    """Class probability = detector's ** (1 - weight) x CLIP's ** weight (F-VLM, arXiv:2209.15639)."""

    base: Annotated[float, Field(ge=0, le=1)] = 0.35
    """Weight of CLIP for classes that were trained on."""
    novel: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Weight of CLIP for all other classes."""


class EvalSection(DetectionOptions):
    """Post-processing and evaluation."""

    batch_size: PositiveInt = 16
    """Images per batch; the metrics do not depend on it."""
    compile: bool = False
    """Compile pyramid and head where a whole data set is evaluated."""
    engine: Engine = "hotcoco"
    """Package that computes the metrics: `hotcoco`, or the slower `official` one (lvis, pycocotools)."""
    ensemble: EnsembleConfig | None = None
    """Rank by the detector's scores and CLIP's; needs detector.freeze_backbone, so that the dense feature is still
    CLIP's. By default the detector's scores alone."""


class ExpertSection(Section):
    """An expert: a detector of new names beside the one of `init_from`, which goes on to answer for all other words."""

    learn: ExpertPart = "path"
    """`path` trains a pyramid, a head and shortcuts; `names` trains a text row for each name and nothing else."""
    own_layers: NonNegativeInt | Literal["all"] = 0
    """Number of the backbone's last layers that the expert trains as its own; the others, with none also CLIP's
    projection, are frozen and shared. More of them fit new pictures better, and take more time and memory."""
    side: bool = True
    """Add a small net of the expert's own, from the image to the pyramid's input, for what the shared layers have
    lost, such as colors; with `learn: path`, for backbones whose strides are powers of 2."""
    rank: NonNegativeInt = 0
    """Rank of low-rank adapters in the layers of the backbone that are not the expert's own; 0 for none. They take
    little memory, but the expert's backbone runs apart from the detector's."""


class TrainConfig(Section):
    """Training a detector: `ovd train`."""

    output: Path
    """Run folder: checkpoints, logs, metrics, pictures."""
    clip: ClipConfig = ClipConfig()
    init_from: Path | None = None
    """Trained detector to start from: a run folder, a checkpoint folder or a weights file; by default CLIP alone."""
    init_state: InitState = "averaged"
    """State that is taken from `init_from`: `averaged`, its averaged weights; or `training`, all that a resumed run
    restores: weights, their average, the optimizer's moments, and the position in the order of the images."""
    bank: BankConfig = BankConfig()
    detector: DetectorConfig = DetectorConfig()
    data: DataConfig = DataConfig()
    train: TrainSection
    eval: EvalSection = EvalSection()
    expert: ExpertSection | None = None
    """Train an expert of `init_from`'s detector, with `ovd fine-tune`; by default a detector of its own."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> "TrainConfig":
        for is_wrong, message in self._conflicts():
            if is_wrong:
                raise ValueError(message)
        return self

    def _conflicts(self) -> Iterator[tuple[object, str]]:
        """Combinations of settings that cannot work: whether one is there, and what to say of it."""
        train, data, expert = self.train, self.data, self.expert
        yield (
            train.patience and not train.eval_every,
            "train.patience counts evaluations; set train.eval_every to the steps between them",
        )
        yield (
            self.eval.ensemble is not None and not self.detector.freeze_backbone,
            "eval.ensemble needs detector.freeze_backbone: a trained backbone's scores are not CLIP's",
        )
        yield (
            data.pairs is not None and train.batch_size < 2,
            "train.batch_size=1 has no room for data.pairs beside annotated images; set 2 or more",
        )
        yield (
            data.held_out > 0 and train.calibration is not None,
            "train.calibration holds out images of its own (train.calibration.images); leave out data.held_out",
        )
        yield (
            data.mosaic and data.shape_groups > 1,
            "data.mosaic cannot be combined with data.shape_groups: a mosaic has none of their shapes",
        )
        yield (
            train.pair_negatives and (data.pairs is None or train.negatives == "strict"),
            "train.pair_negatives needs data.pairs, and not train.negatives=strict: no text is verified as absent",
        )
        yield (
            data.mosaic and train.negatives == "strict",
            "data.mosaic cannot be combined with train.negatives=strict: no class is verified in all four images",
        )
        yield (
            self.init_state == "training" and self.init_from is None,
            "init_state=training needs init_from: the run to continue from",
        )
        yield (
            train.start_distillation and self.init_from is None,
            "train.start_distillation needs init_from: the detector to stay near to",
        )
        if expert is None:
            return
        yield (
            train.start_distillation,
            "train.start_distillation is for one set of weights; an expert changes no old answer",
        )
        yield (
            expert.learn == "names" and (expert.own_layers != 0 or expert.rank),
            "expert.learn=names learns no layers; set expert.own_layers=0 and expert.rank=0",
        )
        yield (
            expert.rank and expert.own_layers == "all",
            "expert.rank is for layers that are not the expert's own; with all its own, set it to 0",
        )
        yield (
            self.init_from is None or self.init_state == "training",
            "expert needs init_from, the run folder of its base detector, and init_state=averaged",
        )
        yield (
            self.detector.freeze_backbone or self.detector.frozen_layers,
            "expert.own_layers says which layers learn; leave out detector.freeze_backbone and frozen_layers",
        )
