"""Settings for training and evaluating a detector."""

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
"""Default `kind` of each section that has several kinds."""


def default_kind(section: str) -> BeforeValidator:
    """Return a validator that fills in the default `kind` of a section."""
    kind = DEFAULT_KINDS[section]
    return BeforeValidator(lambda value: {"kind": kind, **value} if isinstance(value, dict) else value)


class ClipConfig(Section):
    """The CLIP model whose backbone and text tower the detector uses."""

    name: str = "tiny"
    """Name of the model: `tiny` (the toolkit's own), a folder with an open_clip_config.json, or a name from
    open_clip.list_models()."""
    weights: str | None = None
    """Weights of a model from open_clip: one of its pretrained tags, a local file, or `random`. Required for such a
    model; `tiny` and a folder include their weights."""
    activation: Activation | None = None
    """Activation function that the weights of a local file were trained with, which the file does not record. Not
    needed for timm backbones."""
    mean: tuple[float, float, float] | None = None
    """RGB mean, in 0..1, of the image normalization that the weights of a local file were trained with; given together
    with `std`. Not needed if all of open_clip's weights for this name have the same normalization."""
    std: tuple[float, float, float] | None = None
    """RGB standard deviation, in 0..1, of the same normalization; given together with `mean`."""


class BankConfig(TextSources):
    """The text bank: V text variants per class, of which a training step draws one (text augmentation)."""

    file: Path | None = None
    """Bank file from `ovd text-bank`, which must contain the training classes; by default a bank is built on first use.
    The variants in a file are fixed, so the other settings are ignored, except `noise` in training, and `templates` and
    `num_synonyms` in evaluation."""
    paraphrases: Path | None = None
    """JSON file with texts for each class, {"class name": ["a text", ...]}. Each text is a training variant and is used
    without a template. A class with fewer texts than the others repeats its prompts instead."""
    noise: NonNegativeFloat = 0.0
    """Approximate L2 norm of the Gaussian noise that is added to the embedding of a drawn variant, which has norm 1;
    the sum is normalized again."""
    cache: Path = Path("data/text_banks")
    """Folder for the banks that are built on first use."""


class GatedShortcutsConfig(Section):
    """Settings of the gated shortcuts: class embeddings are the dense CLIP feature plus a gated learned path
    (model/gates.py)."""

    kind: Literal["gated"] = "gated"
    places: Annotated[tuple[Place, ...], Field(min_length=1)] = ("pyramid", "head")
    """Places at which the learned path is added to the dense feature."""
    per_channel: bool = True
    """Use one gate per channel of the text space; if false, one gate for all channels."""
    filter_size: Literal[1, 3, 5, 7] = 3
    """Kernel size, in points, of the filter over the head's shortcut."""


class NoShortcutsConfig(Section):
    """No shortcuts: class embeddings are a projection of the head's class features, as in an ordinary detector."""

    kind: Literal["none"] = "none"


class DetectorConfig(Section):
    """Architecture of the detector, and training of its backbone."""

    shortcuts: Annotated[
        GatedShortcutsConfig | NoShortcutsConfig, Field(discriminator="kind"), default_kind("shortcuts")
    ] = GatedShortcutsConfig()
    """Shortcuts from CLIP's dense feature to the class embeddings: kind `gated` (default) or `none`."""
    channels: Annotated[int, Field(gt=0, multiple_of=32)] = 256
    """Width of the learned path (pyramid and head), a multiple of 32."""
    num_convs: PositiveInt = 4
    """Number of 3 x 3 convolutions in each of the head's two towers, or in the one stack of a `task_aligned` head."""
    head: Head = "fcos"
    """Detection head: `fcos` has one tower of convolutions for classes and one for boxes; `task_aligned` (TOOD) has one
    stack of convolutions that both tasks share."""
    freeze_backbone: bool = False
    """Freeze the whole backbone, so that its dense feature stays CLIP's."""
    frozen_layers: NonNegativeInt = 0
    """Number of backbone layers frozen from the input: the stem, then blocks."""
    recompute: bool = False
    """Recompute the backbone's activations in the backward pass: less memory, about a third more time."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth rate of the backbone's last block, falling linearly to 0 at its first; in training only."""
    window: NonNegativeInt = 0
    """Side, in patches, of the windows that a transformer backbone's attention is limited to; 0 is global attention."""
    global_blocks: NonNegativeInt = 4
    """Number of evenly spread blocks that keep global attention; used with `window`."""


class WorldData(Section):
    """The embedded world: a small synthetic data set in LVIS's form, drawn on first use."""

    kind: Literal["world"] = "world"
    root: Path = Path("data/world")
    """Folder of the drawn worlds, relative to the current folder."""
    seed: NonNegativeInt = 0
    """Seed of the scenes and of the choice of rare classes."""


class FileData(Section, SharedOptions):  # type: ignore[misc]  # a Section is frozen, too, which mypy does not see
    """A data set in annotation files. Relative paths start at the data root: OVD_DATA, else DETECTRON2_DATASETS, else
    ./data."""

    kind: Literal["files"] = "files"
    format: DataFormatName
    """Annotation format: `lvis`, `objects365`, `coco` (any file in COCO's form), `coco_zero_shot` (COCO's file with the
    split into 48 base and 17 novel classes), `voc` (XML files) or `yolo` (text labels). data/README.md has the layout
    of each."""
    train_annotations: Path
    train_images: Path | None = None
    """Folder of the training images. Required, except for `yolo`, whose data.yaml names it."""
    val_annotations: Path | None = None
    """Annotation file of the validation set; without it, training does not evaluate."""
    val_images: Path | None = None
    """Folder of the validation images; by default the same as `train_images`."""
    train_split: str | None = None
    """Key of data.yaml that lists the training images, for `yolo`; by default `train`."""
    val_split: str | None = None
    """Key of data.yaml that lists the validation images, for `yolo`; by default `val`."""


class BoxFilters(Section):
    """Filters of pseudo-boxes; a box must pass all of them. The defaults keep the best box per image whatever its
    score, as published."""

    keep: Keep = "top1"
    """Boxes kept per image, among those that pass the other filters: `top1`, the best one; `top1_per_text`, the best
    one per text; `one_to_one`, one per text, such that boxes of two texts do not overlap by an IoU above 0.5; `all`."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum score."""
    min_size_px: NonNegativeFloat = 0.0
    """Minimum length of the shorter side, in pixels of the pair's image."""
    max_relative_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Maximum area, as a fraction of the image's area."""
    caption_match: bool = False
    """Require that a box's text occurs in the pair's caption; for labels with the same queries for every image."""


class PairsConfig(BoxFilters):
    """Image-text pairs to train on in addition to the detection data: self-training, or image-level labels."""

    labels: Path
    """Folder of the labels from `ovd label-pairs`, relative to the current folder, as all outputs of a run are."""
    shards: Path | None = None
    """Folder of the pairs' tar shards, relative to the data root; by default the embedded world's own."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of pairs in a batch, rounded so that a batch holds at least one pair and one annotated image."""
    use: PairUse = "boxes"
    """Supervision from a pair: `boxes` trains on the teacher's boxes that pass the filters; `image_labels` trains on
    the pair's texts as labels of the whole image."""
    max_per_text: PositiveInt | None = None
    """Maximum number of boxes per text over all pairs, those with the best scores; no limit by default."""
    sampled_texts: NonNegativeInt = 100
    """Number of texts drawn in addition to the batch's own, with probability proportional to (number of pairs) ** 0.5,
    as negatives of the batch's pairs."""
    box_loss: bool = False
    """Train the box branch on the teacher's boxes, too. If false, they train the class branch only, and localization is
    learned from human annotations."""
    image_label_weight: PositiveFloat = 0.1
    """Weight of the loss of `use: image_labels`."""


class DataConfig(AugmentationOptions):
    """Training and validation data, and the augmentation of training images."""

    source: Annotated[WorldData | FileData, Field(discriminator="kind"), default_kind("source")] = WorldData()
    """Detection data: kind `world` (default) or `files`."""
    classes: ClassSplit = "base"
    """Classes to train on: `base` removes the annotations of the novel classes (LVIS's rare ones, the 17 of COCO's
    zero-shot split) and checks that none of their names is trained on; `all` trains on every class."""
    size: PositiveInt = 192
    """Longest side of an image in pixels, in training (before scale jitter) and evaluation."""
    mosaic: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a sample is a mosaic of four images at half the size: its own image and three drawn at random.
    Cannot be combined with `shape_groups` or `train.negatives: strict`."""
    held_out: NonNegativeInt = 0
    """Number of training images to leave out, for a stage before one with `train.calibration`. They are the images that
    `train.calibration` holds out, so that no stage trains on the images that scores are calibrated on."""
    repeat_threshold: NonNegativeFloat = 0.001
    """Threshold of LVIS's repeat-factor sampling: classes in less than this share of the training images are
    oversampled. 0 switches it off."""
    shape_groups: PositiveInt = 1
    """Number of groups that images are divided into by aspect ratio. A batch is drawn from one group as far as the
    group's size allows, and is padded to the shape of a group or to one shape that holds every image; with `pairs`,
    to one that holds these, too. If `init_state: training` continues with another batch size, some images occur twice
    in the current epoch, and as many not at all."""
    pairs: PairsConfig | None = None
    """Image-text pairs to train on in addition to `source`; none by default."""
    workers: NonNegativeInt = 1
    """Number of loader processes for `source`, and the same number for `pairs`; 0 loads in the training process."""


class TrainSection(Section):
    """Settings of the training loop: optimization, assignment, negatives, checkpoints and evaluations."""

    steps: PositiveInt
    """Number of optimizer steps."""
    batch_size: PositiveInt = 16
    """Number of images per optimizer step, over all ranks."""
    accumulate: PositiveInt = 1
    """Number of parts into which a rank's images are split for gradient accumulation: less memory, the same gradients
    (nearly the same where a loss depends on predictions: `task_aligned`, the distillations)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of the data, augmentation and sampling."""
    deterministic: bool = False
    """Make results on a GPU bit-identical from run to run, so that a resumed run equals an uninterrupted one to the bit
    (docs/speed.md has the cost). Results on a CPU always are."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate (AdamW)."""
    backbone_rate: NonNegativeFloat = 0.1
    """Factor of `learning_rate` for the backbone."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Layer-wise learning rate decay: each backbone layer has the learning rate of the next layer times this factor."""
    gate_rate: NonNegativeFloat = 1.0
    """Factor of `learning_rate` for the shortcuts' gates."""
    logit_rate: NonNegativeFloat = 10.0
    """Factor of `learning_rate` for the scale and the threshold of the class logits."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of matrices and convolution kernels. Biases, norms, a transformer's tokens and position embeddings,
    gates, and the scale and the threshold of the class logits have none."""
    warmup_steps: NonNegativeInt = 50
    """Number of steps of linear warm-up, at most `steps`."""
    decay: LearningRateDecay = "cosine"
    """Learning rate schedule after the warm-up: `cosine` decays to 1 % of the peak; `step` divides by 10 after 2/3 and
    again after 8/9 of the steps; `constant`."""
    clip_norm: PositiveFloat = 1.0
    """Maximum L2 norm of all gradients together."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the exponential moving average (EMA) of the weights, which is the model that is evaluated. The decay is
    lower in the first steps."""
    assignment: AssignmentRule = "fcos"
    """Assignment of points to boxes: `fcos` with center sampling, `atss`, or `task_aligned` (TOOD), which takes the
    points that predict a box best."""
    atss_steps: NonNegativeInt = 1000
    """Number of initial steps that use ATSS instead of `task_aligned`, because early predictions are not informative;
    used with `assignment: task_aligned`."""
    negatives: NegativeRule = "sampled"
    """Negative classes of an image: `sampled`, all classes of the step; `strict`, only classes verified to be absent
    (federated); `all`, the whole vocabulary, for exhaustively annotated data."""
    sampled_classes: NonNegativeInt = 100
    """Number of classes drawn in addition to those in the batch, with probability proportional to (number of images)
    ** 0.5; used with `negatives: sampled`."""
    pair_negatives: bool = False
    """Use the texts of `data.pairs` as negatives of annotated images, too, except texts that may mean a class in the
    image. Otherwise novel names are negatives in pairs only, and are falsely detected on the background."""
    region_distillation: RegionOptions | None = None
    """Additional loss `distill`, which pulls class embeddings at predicted boxes towards the original CLIP's embeddings
    of the boxes' crops, so that training stays near CLIP. Off by default; `{}` turns it on with defaults."""
    start_distillation: NonNegativeFloat = 0.0
    """Weight of the losses `keep_class`, `keep_quality` and `keep_box`, which pull predictions at points without a box
    towards those of the detector of `init_from`, so that fine-tuning forgets less. 0 turns them off."""
    name_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a class name is left out of a step, drawn anew for every step. Boxes of the class then train the
    box branch and the quality only, as for the classes of `calibration.names`."""
    calibration: CalibrationOptions | None = None
    """Images and names held out of the training, on which the detector is calibrated at the end: this corrects the bias
    towards trained names and turns scores into probabilities. Off by default; `{}` turns it on with defaults."""
    precision: Precision = "auto"
    """Numerical precision: `bf16` (autocast), `float32`, or `auto`, which is bf16 where the hardware is fast at it."""
    device: str = "auto"
    """Device to train on: `auto` (the GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:N`."""
    threads: PositiveInt = 2
    """Number of CPU threads; results on a CPU are bit-identical only for the same number."""
    compile: bool = False
    """Compile pyramid and head with torch.compile: a slow start, then somewhat faster steps (docs/speed.md). This
    replaces the Triton kernels and CUDA graphs. On a CPU it needs a C++ compiler."""
    cuda_graphs: bool = True
    """Run the forward and backward passes on a GPU as CUDA graphs. This applies to a single process with `accumulate`
    1, without `compile` and `detector.recompute`. The first batch of each shape takes some seconds more."""
    save_every: PositiveInt = 250
    """Number of steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints kept on disk, the newest ones."""
    eval_every: NonNegativeInt = 0
    """Number of steps between evaluations; 0 evaluates at the end only."""
    patience: NonNegativeInt = 0
    """Number of evaluations without a better validation AP after which the run ends, with the averaged weights of the
    best evaluation as its result; 0 takes all steps. For few images, on which long trainings overfit. An AP that has
    chosen the weights is a little too high."""
    wandb: str | None = None
    """Weights & Biases project that the curves are also logged to; needs the package wandb."""


class EnsembleConfig(Section):
    """Score ensembling: class probability = detector's ** (1 - weight) x CLIP's ** weight (F-VLM, arXiv:2209.15639)."""

    base: Annotated[float, Field(ge=0, le=1)] = 0.35
    """Weight of CLIP's probability for classes that were trained on."""
    novel: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Weight of CLIP's probability for all other classes."""


class EvalSection(DetectionOptions):
    """Settings of post-processing and evaluation."""

    batch_size: PositiveInt = 16
    """Number of images per batch; the metrics do not depend on it."""
    compile: bool = False
    """Compile pyramid and head with torch.compile to evaluate a whole data set."""
    engine: Engine = "hotcoco"
    """Package that computes the metrics: `hotcoco`, or the slower `official` one (lvis, pycocotools)."""
    ensemble: EnsembleConfig | None = None
    """Combine the detector's scores with CLIP's; needs detector.freeze_backbone, so that the dense feature is still
    CLIP's. By default only the detector's scores are used."""


class ExpertSection(Section):
    """Settings of an expert: a detector of new names beside the detector of `init_from`, which still detects all other
    names."""

    learn: ExpertPart = "path"
    """Trained part: `path` trains a pyramid, a head and shortcuts; `names` trains only a text row for each name."""
    own_layers: NonNegativeInt | Literal["all"] = 0
    """Number of the backbone's last layers that the expert trains as its own, or `all`. The other layers are frozen and
    shared with the detector, and with 0 also CLIP's projection. More layers fit new images better, and take more time
    and memory."""
    side: bool = True
    """Add a small network from the image to the pyramid's input, for information that the shared layers have lost, such
    as colors; used with `learn: path`, for backbones whose strides are powers of 2."""
    rank: NonNegativeInt = 0
    """Rank of low-rank adapters in the backbone layers that are not the expert's own; 0 for none. They take little
    memory, but the expert's backbone runs separately from the detector's."""


class TrainConfig(Section):
    """Config of training a detector: `ovd train`."""

    output: Path
    """Run folder, for checkpoints, logs, metrics and pictures."""
    clip: ClipConfig = ClipConfig()
    init_from: Path | None = None
    """Trained detector to start from: a run folder, a checkpoint folder or a weights file; by default only CLIP's
    weights are loaded."""
    init_state: InitState = "averaged"
    """State to load from `init_from`: `averaged`, the averaged weights; `training`, everything that a resumed run
    restores: weights, their average, the optimizer's moments, and the position in the order of the images."""
    bank: BankConfig = BankConfig()
    detector: DetectorConfig = DetectorConfig()
    data: DataConfig = DataConfig()
    train: TrainSection
    eval: EvalSection = EvalSection()
    expert: ExpertSection | None = None
    """Settings for training an expert of `init_from`'s detector, with `ovd fine-tune`; by default a detector of its own
    is trained."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> "TrainConfig":
        for is_wrong, message in self._conflicts():
            if is_wrong:
                raise ValueError(message)
        return self

    def _conflicts(self) -> Iterator[tuple[object, str]]:
        """Yield the combinations of settings that cannot work: whether the config has one, and its error message."""
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
            "data.pairs needs train.batch_size=2 or more, since a batch has both pairs and annotated images",
        )
        yield (
            data.held_out > 0 and train.calibration is not None,
            "data.held_out cannot be combined with train.calibration, which has its own held-out images",
        )
        yield (
            data.mosaic and data.shape_groups > 1,
            "data.mosaic cannot be combined with data.shape_groups: a mosaic has none of their shapes",
        )
        yield (
            train.pair_negatives and (data.pairs is None or train.negatives == "strict"),
            "train.pair_negatives needs data.pairs, but not train.negatives=strict: no text is verified as absent",
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
            "train.start_distillation cannot be used with expert, which leaves the starting detector unchanged",
        )
        yield (
            expert.learn == "names" and (expert.own_layers != 0 or expert.rank),
            "expert.learn=names learns no layers; set expert.own_layers=0 and expert.rank=0",
        )
        yield (
            expert.rank and expert.own_layers == "all",
            "expert.rank is for layers that are not the expert's own; with expert.own_layers=all, set it to 0",
        )
        yield (
            self.init_from is None or self.init_state == "training",
            "expert needs init_from, the run folder of its base detector, and init_state=averaged",
        )
        yield (
            self.detector.freeze_backbone or self.detector.frozen_layers,
            "expert.own_layers sets which layers are trained; remove detector.freeze_backbone and frozen_layers",
        )
