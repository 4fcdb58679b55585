"""Use of ovd inside detectron2: data sets in its catalog, the detector as a meta-architecture, and conversion between
Detections and Instances. No other module imports this one, which needs detectron2 (docs/detectron2.md).

    from ovd.detectron2_interop import add_ovd_config, register_split
    register_split("birds_train", load_annotations(...))
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "OvdDetector"
    cfg.MODEL.OVD.RUN = "runs/quickstart"           # a trained detector, or MODEL.OVD.CONFIG for a fresh one
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("birds_train",), ("birds_val",)

Optimizer, schedule, augmentation and checkpoints are detectron2's, with one learning rate for all parameters.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

try:
    from detectron2.config import CfgNode, configurable
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.modeling import META_ARCH_REGISTRY
    from detectron2.structures import Boxes, BoxMode, Instances
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: detectron2 is not on PyPI; docs/detectron2.md says how to install it"
    ) from error
from jaxtyping import Int
from torch import Tensor, nn

from ovd.build.crops import build_second_look
from ovd.build.detector import build_detector, load_configured_clip
from ovd.build.text import build_class_bank, build_text_sampler, queries_of_names
from ovd.build.trained import TrainedDetector, initialize, load_detector
from ovd.config.training import TrainConfig
from ovd.config_files import load_config
from ovd.data.formats.supported import FORMATS
from ovd.data.index import AnnotationIndex
from ovd.data.loading.padding import pad_images
from ovd.distributed import world_size
from ovd.engine.step import BatchPart, Criterion, set_initial_bias
from ovd.engine.step_texts import StepTexts, TextSampler
from ovd.engine.train import step_generator
from ovd.inference import ImageBatch, Inference
from ovd.model.query_texts import QueryTexts
from ovd.precision import Compute, autocast
from ovd.structures import Batch, Detections, Predictions, Targets


def add_ovd_config(cfg: CfgNode) -> None:
    """Add the settings of `OvdDetector` as `cfg.MODEL.OVD`."""
    cfg.MODEL.OVD = CfgNode({"RUN": "", "CONFIG": "", "OVERRIDES": []})


def register_split(name: str, index: AnnotationIndex) -> None:
    """Register a data set in detectron2, with class names, category ids and image counts as its metadata.

    detectron2's evaluators read the annotation file itself: LVISEvaluator for `evaluator_type` `lvis`, else
    COCOEvaluator. For formats other than JSON, COCOEvaluator writes a JSON file from the catalog.
    """
    own_file = {"json_file": str(index.path)} if FORMATS[index.format].is_coco_json else {}
    DatasetCatalog.register(name, lambda: dataset_dicts(index))
    MetadataCatalog.get(name).set(
        thing_classes=list(index.names),
        thing_synonyms=[list(category.synonyms) for category in index.categories],
        thing_dataset_id_to_contiguous_id={category.id: row for row, category in enumerate(index.categories)},
        class_image_count=[{"id": category.id, "image_count": category.image_count} for category in index.categories],
        evaluator_type="lvis" if FORMATS[index.format].is_federated else "coco",
        **own_file,
    )


def dataset_dicts(index: AnnotationIndex) -> list[dict[str, Any]]:
    """Convert a data set to detectron2's standard dataset dicts.

    Crowd regions are left out, since detectron2's mapper drops them. Negative and not exhaustive classes are given by
    category id, under the keys of detectron2's LVIS reader.
    """
    ids = [category.id for category in index.categories]
    dicts = []
    for image in range(len(index)):
        record = index.record(image)
        dicts.append(
            {
                "file_name": str(record.path),
                "height": record.height,
                "width": record.width,
                "image_id": record.id,
                "neg_category_ids": [ids[row] for row in record.labels.negative_classes],
                "not_exhaustive_category_ids": [ids[row] for row in record.labels.not_exhaustive_classes],
                "annotations": [
                    {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": row, "iscrowd": 0}
                    for box, row in zip(record.labels.boxes.tolist(), record.labels.classes.tolist(), strict=True)
                ],
            }
        )
    return dicts


def to_instances(detections: Detections, height: int, width: int) -> Instances:
    """Convert the detections of an image to detectron2's Instances."""
    return Instances(
        (height, width),
        pred_boxes=Boxes(detections.boxes),
        scores=detections.scores,
        pred_classes=detections.classes,
    )


def to_detections(instances: Instances) -> Detections:
    """Convert Instances to Detections, best first; masks and other fields are dropped."""
    order = instances.scores.argsort(descending=True, stable=True)
    return Detections(
        boxes=instances.pred_boxes.tensor[order].float(),
        scores=instances.scores[order],
        classes=instances.pred_classes[order],
    )


@META_ARCH_REGISTRY.register()
class OvdDetector(nn.Module):
    """Meta-architecture that trains on the classes of the first training set and detects those of the first test set.

    Without a test set, it detects the classes of the training set.
    """

    bias_is_solved: Tensor
    step: Tensor
    text: Tensor

    @configurable
    def __init__(
        self,
        *,
        trained: TrainedDetector,
        is_fresh: bool,
        text_sampler: TextSampler | None,
        queries: QueryTexts,
        row_of_id: dict[int, int],
        is_bgr: bool,
    ):
        """
        Args:
            trained: a detector with its config, trained or not.
            is_fresh: whether the logit bias is still to be solved for, on the first training batch.
            text_sampler: sampler of texts of the training set's classes; None to detect only.
            queries: one query for each class of the test set.
            row_of_id: vocabulary row of each category id of the training set.
            is_bgr: whether images have BGR channels, detectron2's default.
        """
        super().__init__()
        self.detector = trained.detector
        self.register_buffer("bias_is_solved", torch.tensor(not is_fresh))
        self.register_buffer("step", torch.tensor(0))  # the sampled texts are a function of the step
        self.register_buffer("text", queries.text, persistent=False)
        self._config = trained.config
        self._ensemble = queries.ensemble
        self._second_look = build_second_look(trained.config, trained.config.eval.second_look)
        self._calibration = trained.active_calibration
        self._text_sampler = text_sampler
        self._row_of_id = row_of_id
        self._is_bgr = is_bgr

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of `__init__` for a detectron2 config.

        Raises:
            ValueError: not exactly one of MODEL.OVD.RUN and MODEL.OVD.CONFIG is given; MODEL.OVD.OVERRIDES are given
                with MODEL.OVD.RUN; or there is a training set and the assignment depends on predictions.
        """
        options = cfg.MODEL.OVD
        if bool(options.RUN) == bool(options.CONFIG):
            raise ValueError("set MODEL.OVD.RUN (folder of a trained detector) or MODEL.OVD.CONFIG (an ovd config)")
        if options.RUN and options.OVERRIDES:
            raise ValueError("MODEL.OVD.OVERRIDES needs MODEL.OVD.CONFIG; MODEL.OVD.RUN has its own settings")
        training = _metadata(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None
        tested = _metadata((cfg.DATASETS.TEST or cfg.DATASETS.TRAIN)[0])
        device = cfg.MODEL.DEVICE
        if device == "cuda":  # detectron2 selects each process's GPU in torch, not in the config
            device = f"cuda:{torch.cuda.current_device()}"
        if options.RUN:
            trained, is_fresh = load_detector(Path(options.RUN), device), False
        else:
            overrides = [*options.OVERRIDES, f"train.device={device}"]
            config = load_config(Path(options.CONFIG), overrides, TrainConfig)
            trained = _new_detector(config, () if training is None else tuple(training.thing_classes))
            is_fresh = config.init_from is None
        config, clip = trained.config, trained.clip
        text_sampler = None
        row_of_id: dict[int, int] = {}
        if training is not None:
            if config.train.assignment == "task_aligned":
                raise ValueError("train.assignment=task_aligned is not supported in detectron2; use fcos or atss")
            names = list(training.thing_classes)
            # Without this entry in the metadata, category ids are 1, 2, ... without gaps.
            row_of_id = training.get("thing_dataset_id_to_contiguous_id") or {row + 1: row for row in range(len(names))}
            image_counts = torch.ones(len(names), dtype=torch.int64)
            for of_class in training.get("class_image_count", ()):
                image_counts[row_of_id[of_class["id"]]] = of_class["image_count"]
            bank = build_class_bank(config, clip, names, _synonyms(training))
            text_sampler = build_text_sampler(config, bank, image_counts)
        return {
            "trained": trained,
            "is_fresh": is_fresh,
            "text_sampler": text_sampler,
            "queries": queries_of_names(trained, list(tested.thing_classes), _synonyms(tested)),
            "row_of_id": row_of_id,
            "is_bgr": cfg.INPUT.FORMAT == "BGR",
        }

    @property
    def device(self) -> torch.device:
        return self.bias_is_solved.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Compute losses or detections for a batch.

        Args:
            batched_inputs: output of detectron2's DatasetMapper for each image.

        Returns:
            In training, the losses by name; otherwise `[{"instances": Instances}, ...]`, with boxes in pixels of an
            image of the given `height` and `width`.
        """
        images, sizes = self._images(batched_inputs)
        if self.training:
            return self._losses(images, sizes, batched_inputs)
        heights_widths = [
            (int(given.get("height", size[0])), int(given.get("width", size[1])))
            for given, size in zip(batched_inputs, sizes.tolist(), strict=True)
        ]
        inference = Inference(
            self.detector,
            size=self._config.data.size,
            options=self._config.eval,
            low_precision=torch.is_autocast_enabled(self.device.type),
            second_look=self._second_look,
            calibration=self._calibration,
        )
        batch = ImageBatch(images, sizes, torch.tensor(heights_widths))
        found = inference.detect(QueryTexts(self.text, self._ensemble), batch)
        return [{"instances": to_instances(item, *size)} for item, size in zip(found, heights_widths, strict=True)]

    def _images(self, batched_inputs: list[dict[str, Any]]) -> tuple[Tensor, Int[Tensor, "B 2"]]:
        images = [given["image"] for given in batched_inputs]
        if any(image.dtype != torch.uint8 for image in images):
            raise ValueError("OvdDetector needs uint8 images, 0 to 255, as DatasetMapper makes them")
        padded, sizes = pad_images(images, divisor=self.detector.size_divisor)
        batch = padded.to(self.device)
        return (batch.flip(1) if self._is_bgr else batch), sizes

    def _losses(
        self, images: Tensor, sizes: Int[Tensor, "B 2"], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        if self._text_sampler is None:
            raise ValueError("this OvdDetector was built without a training set; name one in cfg.DATASETS.TRAIN")
        for name, off in (("region_distillation", "null"), ("calibration", "null"), ("start_distillation", "0")):
            if getattr(self._config.train, name):
                raise ValueError(
                    f"train.{name} is not supported in detectron2; to train, give MODEL.OVD.CONFIG with "
                    f"train.{name}={off} in MODEL.OVD.OVERRIDES (and init_from=FOLDER for a trained detector)"
                )
        targets = tuple(self._targets(given) for given in batched_inputs)
        # Image ids of detectron2 may be any strings. Here they are only for messages, so numbers take their place.
        batch = Batch.without_pairs(images, sizes, targets, image_ids=tuple(range(len(targets))))
        generator = step_generator(self._config.train.seed, int(self.step))
        texts = self._text_sampler.sample(batch, generator).to(self.device)
        self.step += 1
        batch = batch.to(self.device)
        # bf16 instead of detectron2's fp16: the class loss computes its gradients before loss scaling could help.
        compute = Compute(self.device, torch.is_autocast_enabled(self.device.type))
        if not self.bias_is_solved:
            set_initial_bias(self.detector, batch, texts.embeddings, compute)
            self.bias_is_solved.fill_(True)
        with compute.autocast():
            predictions = self.detector(batch.images)
        with autocast(self.device, False):
            return self._losses_of(predictions, batch, texts, compute)

    def _losses_of(
        self, predictions: Predictions, batch: Batch, texts: StepTexts, compute: Compute
    ) -> dict[str, Tensor]:
        criterion, points = Criterion(self._config.train, pairs=None), self.detector.points(batch.images)
        matched = criterion.match_by_annotations(points, batch, step=0)
        assert matched is not None, "from_config refuses assignments that depend on predictions"
        # DDP averages the gradients over ranks, but each rank's loss is a part of a sum.
        matched = replace(matched, normalizers=matched.normalizers / world_size())
        classifier = self.detector.classifier(texts.embeddings, texts.class_ids)
        return criterion.losses(BatchPart(batch, texts, predictions, points, classifier, compute), matched)

    def _targets(self, given: dict[str, Any]) -> Targets:
        instances = given["instances"].to("cpu")

        def rows(field: str) -> Int[Tensor, " N"]:
            known = [self._row_of_id[number] for number in given.get(field, ()) if number in self._row_of_id]
            return torch.tensor(known, dtype=torch.int64)

        return replace(
            Targets.empty(),
            boxes=instances.gt_boxes.tensor.float(),
            classes=instances.gt_classes,
            negative_classes=rows("neg_category_ids"),
            not_exhaustive_classes=rows("not_exhaustive_category_ids"),
        )


def _new_detector(config: TrainConfig, classes: tuple[str, ...]) -> TrainedDetector:
    """Build a detector from a config, untrained or with the weights of `init_from`."""
    torch.manual_seed(config.train.seed)
    clip = load_configured_clip(config.clip)
    detector = build_detector(config, clip)
    if config.init_from is not None:
        initialize(detector, config.init_from, clip)
    return TrainedDetector(detector, config, clip, classes)


def _metadata(name: str) -> Any:
    """Return the metadata of a data set, which is loaded if it has no class names yet."""
    if not MetadataCatalog.get(name).get("thing_classes"):
        DatasetCatalog.get(name)
    return MetadataCatalog.get(name)


def _synonyms(metadata: Any) -> list[tuple[str, ...]]:
    given = metadata.get("thing_synonyms", [()] * len(metadata.thing_classes))
    return [tuple(names) for names in given]
