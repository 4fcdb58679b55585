"""Label image-text pairs with a detector."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ovd.build.detector import resolve_device
from ovd.build.trained import TrainedDetector, build_inference
from ovd.choices import Templates
from ovd.config.labelling import LabelOptions
from ovd.data.pairs.manifest import ManifestEntry
from ovd.data.report import DataReport
from ovd.experts.inference import ExpertInference
from ovd.model.detection_options import DetectionOptions
from ovd.model.score_calibration import ScoreCalibration
from ovd.precision import describe_machine
from ovd.selftrain.hf_teacher import HuggingFaceTeacher
from ovd.selftrain.ledger import LabelCounts
from ovd.selftrain.pseudo_label import label_shards
from ovd.selftrain.queries import SOURCES
from ovd.selftrain.teacher import OvdTeacher, Teacher, TextVariants
from ovd.text.encoder import text_tower_on
from ovd.text.prompts import TEMPLATES

CANDIDATES_PER_BOX = 20
"""Candidates for an image's boxes that the teacher looks at, in multiples of the boxes that are stored, at least. An
object has tens of candidates for each text, and a teacher that looks at too few loses the texts that score low."""


@dataclass(frozen=True)
class LabelRequest:
    """Which pairs are labelled, and how."""

    pairs: Path
    """The folder of shards."""
    output: Path
    """The folder of labels and ledgers."""
    options: LabelOptions
    templates: Templates | None = None
    """Of TEMPLATES, those that names and phrases are asked for in, and stored in as text variants; the run's by
    default. Captions are asked for as they stand."""
    teacher_hf: str | None = None
    """A zero-shot detector of transformers that finds the boxes instead. Without `templates` it reads names and phrases
    as they stand; the text variants are then still in the run's."""
    size: int | None = None
    """Longest side of an image in pixels, as trained by default; transformers' detectors have their own."""
    skip_unreadable: bool = False
    """Whether to go on past images that cannot be read, however many."""


@dataclass(frozen=True)
class Labeller:
    """A teacher with all that labelling needs beside it."""

    teacher: Teacher
    shown_name: str
    """The teacher's name, with the folder that it was loaded from."""
    is_calibrated: bool
    """Whether its scores are probabilities."""
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
    """The GPU of a process of torchrun, by its LOCAL_RANK; None for the device of the run's config, without torchrun or
    without a GPU."""
    local_rank = environment.get("LOCAL_RANK")
    return f"cuda:{local_rank}" if local_rank is not None and torch.cuda.is_available() else None


def build_labeller(trained: TrainedDetector, request: LabelRequest) -> Labeller:
    """Build the teacher of a job; arguments and errors as for `pseudo_label_run`."""
    config, options = trained.config, request.options
    templates, teacher_hf = request.templates, request.teacher_hf
    if trained.experts.folders and (teacher_hf or templates not in (None, config.bank.templates)):
        raise ValueError(
            "--expert cannot be used with --teacher-hf, or with other --templates than the run's: experts stand beside "
            "the run's own detector, and know their names in its templates"
        )
    if teacher_hf is not None and request.size is not None:
        raise ValueError("--size cannot be used with --teacher-hf, whose detectors have their own size of images")
    if trained.detector.name_offsets is not None:
        raise ValueError(
            f"{trained.shown_name} learned names alone (expert.learn); label with its detector and --expert"
        )
    device = resolve_device(config)
    are_names = options.queries == "classes" or SOURCES[options.queries].are_names
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
        shown_name = teacher.name
    else:
        if config.eval.ensemble is not None:  # CLIP's softmax needs a whole vocabulary
            print(f"{trained.shown_name}: the teacher's own scores are used alone, without CLIP's (eval.ensemble)")
        if config.eval.competition > 0:
            print(
                f"{trained.shown_name}: names do not compete for a place (eval.competition), so that scores can be "
                "compared across captions with different numbers of names"
            )
        # All names of a place are stored, at all points: labels are filtered afterwards, and captions have few names.
        # The job keeps the best box of each name, so it is given those of all candidates. A caption is one name; there
        # one box more than is kept tells that some are left out.
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
        inference = build_inference(_without_competing(trained), size=request.size, options=own)
        for expert in inference.experts if isinstance(inference, ExpertInference) else ():
            if _was_competing(expert.inference.calibration):
                expert.inference.calibration = None
        is_calibrated = inference.is_calibrated
        own_teacher = OvdTeacher(inference, texts, run=str(config.output))
        teacher, shown_name = own_teacher, f"{trained.shown_name} {own_teacher.settings}"
    return Labeller(teacher, shown_name, is_calibrated, texts, request, trained, device)


def _without_competing(trained: TrainedDetector) -> TrainedDetector:
    """The detector without a calibration that was fitted where names compete.

    Such a correction of the bias towards trained names belongs to the softmax over the names alone, and such a map to
    its scores.
    """
    return replace(trained, calibration=None) if _was_competing(trained.calibration) else trained


def _was_competing(calibration: ScoreCalibration | None) -> bool:
    return calibration is not None and calibration.options.competition > 0


def pseudo_label_run(
    trained: TrainedDetector, request: LabelRequest, *, listed: Mapping[str, ManifestEntry | None] | None = None
) -> LabelCounts:
    """Detect boxes in shards of image-text pairs for training on them; see selftrain/pseudo_label.py.

    Args:
        trained: the teacher; a student trained on the labels must have its text tower.
        listed: the shards to label (`shards_of_worker`); all of the folder by default.

    Raises:
        ValueError: experts together with `templates` or `teacher_hf`.
    """
    labeller = build_labeller(trained, request)
    scores = "scores are probabilities" if labeller.is_calibrated else "scores are not calibrated"
    print(f"{request.output}: {labeller.shown_name}, {scores}, {describe_machine(labeller.device)}")
    return labeller.label(listed, report=DataReport(stops=not request.skip_unreadable))
