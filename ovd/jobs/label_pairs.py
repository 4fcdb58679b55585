"""Label image-text pairs with a detector."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ovd.build.detector import resolve_device
from ovd.build.trained import TrainedDetector, build_inference
from ovd.choices import Templates
from ovd.config.labeling import LabelOptions
from ovd.data.pairs.manifest import ManifestEntry
from ovd.data.report import DataReport
from ovd.experts.inference import ExpertInference
from ovd.model.detection_options import DetectionOptions
from ovd.model.score_calibration import ScoreCalibration
from ovd.precision import describe_machine
from ovd.selftrain.hf_teacher import HuggingFaceTeacher
from ovd.selftrain.ledger import LabelCounts
from ovd.selftrain.pseudo_label import label_shards
from ovd.selftrain.queries import QUERY_SOURCES
from ovd.selftrain.teacher import OvdTeacher, Teacher, TextVariants
from ovd.text.encoder import text_tower_on
from ovd.text.prompts import TEMPLATES

CANDIDATES_PER_BOX = 20
"""Minimum number of candidates that the teacher considers in an image, per box that may be stored. An object has tens
of candidates for each text, and a teacher that considers too few loses the texts with low scores."""


@dataclass(frozen=True)
class LabelRequest:
    """Image-text pairs to label, and the settings of the labeling."""

    pairs: Path
    """Folder of the shards."""
    output: Path
    """Folder of the labels and ledgers."""
    options: LabelOptions
    templates: Templates | None = None
    """Name of the prompt templates (`TEMPLATES`) in which names and phrases are queried and stored as text variants;
    None for the run's. Captions are queried unchanged."""
    teacher_hf: str | None = None
    """Name of a zero-shot detector of transformers that detects the boxes instead. Without `templates`, it is queried
    with names and phrases unchanged, while the text variants use the run's templates."""
    size: int | None = None
    """Longest side of an image in pixels; None for the size used in training. Detectors of transformers have their
    own."""
    skip_unreadable: bool = False
    """Whether to continue however many images cannot be read."""


@dataclass(frozen=True)
class Labeler:
    """A teacher, and everything else that labeling needs."""

    teacher: Teacher
    display_name: str
    """Name of the teacher, with the folder that it was loaded from."""
    is_calibrated: bool
    """Whether the teacher's scores are probabilities."""
    texts: TextVariants
    request: LabelRequest
    trained: TrainedDetector
    device: torch.device

    def label(self, listed: Mapping[str, ManifestEntry | None] | None, *, report: DataReport) -> LabelCounts:
        """Label shards of the request's pairs (`label_shards`)."""
        request = self.request
        with text_tower_on(self.trained.clip, self.device):
            return label_shards(
                request.pairs, request.output, self.teacher, self.texts, request.options, listed=listed, report=report
            )


def device_of_worker(environment: Mapping[str, str]) -> str | None:
    """Return the GPU of a torchrun process by its LOCAL_RANK; None without torchrun or without a GPU.

    With None, the device of the run's config is used.
    """
    local_rank = environment.get("LOCAL_RANK")
    return f"cuda:{local_rank}" if local_rank is not None and torch.cuda.is_available() else None


def build_labeler(trained: TrainedDetector, request: LabelRequest) -> Labeler:
    """Build the teacher of a job; arguments and errors as for `pseudo_label_run`."""
    config, options = trained.config, request.options
    templates, teacher_hf = request.templates, request.teacher_hf
    if trained.experts.folders and (teacher_hf or templates not in (None, config.bank.templates)):
        raise ValueError(
            "--expert cannot be used with --teacher-hf, or with --templates other than the run's: experts belong to "
            "the run's detector, and know their names only in its templates"
        )
    if teacher_hf is not None and request.size is not None:
        raise ValueError("--size cannot be used with --teacher-hf, whose detectors have their own image size")
    if trained.detector.name_offsets is not None:
        raise ValueError(
            f"{trained.display_name} has learned only names (expert.learn=names); label with its detector and --expert"
        )
    device = resolve_device(config)
    are_names = options.queries == "classes" or QUERY_SOURCES[options.queries].are_names
    prompts = TEMPLATES[templates or config.bank.templates] if are_names else None
    texts = TextVariants(trained.clip, prompts)
    candidates = max(config.eval.candidates, CANDIDATES_PER_BOX * options.max_boxes)
    teacher: Teacher
    is_calibrated = False
    if teacher_hf is not None:
        teacher = HuggingFaceTeacher(
            teacher_hf,
            device=device,
            score_threshold=options.score_threshold,
            candidates=candidates,
            nms_iou=config.eval.nms_iou,
            templates=None if templates is None else prompts,
        )
        display_name = teacher.name
    else:
        if config.eval.ensemble is not None:  # CLIP's softmax needs a whole vocabulary
            print(f"{trained.display_name}: only the teacher's own scores are used, without CLIP's (eval.ensemble)")
        if config.eval.competition > 0:
            print(
                f"{trained.display_name}: eval.competition is off, so that scores are comparable across captions with "
                "different numbers of names"
            )
        # All names at a place are stored, and all points are scored: labels are filtered afterwards, and captions have
        # few names. The job keeps the best box of each name, so the teacher returns all candidates. A caption is a
        # single name, for which one box more than is kept shows that some are left out.
        teacher_options = {
            "score_threshold": options.score_threshold,
            "max_detections": options.max_boxes + 1 if options.queries == "caption" else candidates,
            "candidates": candidates,
            "competition": 0.0,
            "one_name_per_place": None,
            "prefilter": None,
        }
        run_options = {name: getattr(config.eval, name) for name in DetectionOptions.model_fields}
        own = DetectionOptions.model_validate(run_options | teacher_options)
        inference = build_inference(_without_competition_calibration(trained), size=request.size, options=own)
        for expert in inference.experts if isinstance(inference, ExpertInference) else ():
            if _was_fitted_with_competition(expert.inference.calibration):
                expert.inference.calibration = None
        is_calibrated = inference.is_calibrated
        own_teacher = OvdTeacher(inference, texts, run=str(config.output))
        teacher, display_name = own_teacher, f"{trained.display_name} {own_teacher.settings}"
    return Labeler(teacher, display_name, is_calibrated, texts, request, trained, device)


def _without_competition_calibration(trained: TrainedDetector) -> TrainedDetector:
    """Return the detector, without its calibration if that was fitted on names that compete.

    The bias correction and the score map of such a calibration hold only for scores of the softmax over the names.
    """
    return replace(trained, calibration=None) if _was_fitted_with_competition(trained.calibration) else trained


def _was_fitted_with_competition(calibration: ScoreCalibration | None) -> bool:
    return calibration is not None and calibration.options.competition > 0


def pseudo_label_run(
    trained: TrainedDetector, request: LabelRequest, *, listed: Mapping[str, ManifestEntry | None] | None = None
) -> LabelCounts:
    """Detect boxes in shards of image-text pairs for training on them; see selftrain/pseudo_label.py.

    Args:
        trained: the teacher; a student trained on the labels must have its text tower.
        listed: shards to label (`shards_of_worker`); None for all shards of the folder.

    Raises:
        ValueError: experts are combined with `teacher_hf` or with templates other than the run's, `size` is combined
            with `teacher_hf`, or the run learned names alone.
    """
    labeler = build_labeler(trained, request)
    scores = "scores are probabilities" if labeler.is_calibrated else "scores are not calibrated"
    print(f"{request.output}: {labeler.display_name}, {scores}, {describe_machine(labeler.device)}")
    return labeler.label(listed, report=DataReport(stops=not request.skip_unreadable))
