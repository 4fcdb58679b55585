"""Evaluate a detector on a data set with its own vocabulary."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from ovd.build.crops import build_crop_encoder
from ovd.build.data import evaluation_loading, load_validation_index
from ovd.build.detector import load_original_clip
from ovd.build.text import evaluation_text, queries_of_index
from ovd.build.trained import TrainedDetector, build_inference
from ovd.choices import Engine
from ovd.data.index import AnnotationIndex
from ovd.distributed import broadcast, is_main, main_first, sum_over_ranks
from ovd.engine.signals import StopRequest
from ovd.evaluation.detector import DatasetDetector, detect_in_dataset
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.groups import group_average_precision
from ovd.evaluation.html_report import report_data, write_html_report
from ovd.evaluation.naming import measure_naming
from ovd.evaluation.naming_report import format_naming, write_naming
from ovd.evaluation.naming_results import NamingReport
from ovd.evaluation.note import EvaluationNote, read_note, write_note
from ovd.evaluation.report import Evaluation
from ovd.evaluation.results_file import write_results
from ovd.evaluation.run import measure_results, print_measures, write_measures
from ovd.experts.inference import ExpertInference
from ovd.export.inference import OnnxInference
from ovd.files import make_folder, sha256_of
from ovd.format_count import format_count
from ovd.inference import BatchDetector, Inference
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.crop_options import CropOptions
from ovd.model.detection_options import DetectionOptions
from ovd.model.query_texts import QueryTexts
from ovd.onnx.session import DetectionSession
from ovd.text.names import isin_names
from ovd.warn import warn

NAMING_IMAGES = 300
"""Number of images on which naming is measured: over a thousand boxes, measured in seconds."""


def detect_all(
    trained: TrainedDetector,
    index: AnnotationIndex,
    queries: QueryTexts,
    *,
    inference: DatasetDetector | None = None,
    engine: Engine | None = None,
    stop: StopRequest | None = None,
) -> BoxEvaluator:
    """Detect every class of a data set in each of its images.

    Args:
        queries: one query per class of the data set (`queries_of_index`).
        inference: inference to use instead of the run's own.

    Raises:
        Stopped: as raised by `detect_in_dataset`.
    """
    config = trained.config
    inference = inference or build_inference(trained)
    if config.eval.compile and isinstance(inference, BatchDetector):
        inference.compile()
    evaluator = detect_in_dataset(
        inference, queries, index, evaluation_loading(config), engine=engine or config.eval.engine, stop=stop
    )
    if isinstance(inference, ExpertInference):
        num_capped = int(sum_over_ranks(torch.tensor(inference.num_capped)))
        if num_capped and is_main():
            boxes = format_count(num_capped, "box", "boxes")
            print(f"{boxes} of the detector and the experts dropped, beyond eval.max_detections per image")
    return evaluator


def prepare_output(output: Path, options: Mapping[str, str]) -> None:
    """Make the folder of an evaluation and note its options there, so that it can be repeated after an interruption.

    The weights that were noted for an earlier evaluation stay noted, as its files stay, until the files of this one are
    written.

    Args:
        options: options that identify the run and the data set (`EvaluationSubject.recorded_options`).

    Raises:
        ValueError: the folder holds an evaluation with other options, or a results file that is not from the evaluation
            of a run, or it cannot be made or written to.
    """
    with main_first():
        before = read_note(output) or EvaluationNote()
        _check_same(output, before, options)
        if is_main():
            make_folder(output, str(output), "; give another --output")
            write_note(output, replace(before, options=options))


def _check_same(output: Path, before: EvaluationNote, options: Mapping[str, str]) -> None:
    """Check that the evaluation in a folder may be replaced by one with these options; see `prepare_output`."""
    found = next((file for name in ("results.json", "metrics.json") if (file := output / name).exists()), None)
    if found is None:
        return  # an earlier evaluation stopped before its results, for example at a missing image
    if before.options:
        names = {*before.options, *options}
        if different := sorted(name for name in names if before.options.get(name) != options.get(name)):
            raise ValueError(
                f"{output} has an evaluation with different settings: {', '.join(different)}; give another --output"
            )
    elif not before.is_of_own_set:
        raise ValueError(f"{found} was not written by an evaluation of a run; move it away, or give another --output")


def evaluate_run(
    trained: TrainedDetector,
    *,
    output: Path,
    index: AnnotationIndex | None = None,
    engine: Engine | None = None,
    size: int | None = None,
    html: bool = False,
    onnx: Path | None = None,
    note: EvaluationNote | None = None,
) -> Evaluation:
    """Evaluate a detector on a data set with its own vocabulary, and write all files; ranks share the images.

    Args:
        index: data set, loaded with its ground truth (`load_evaluation_index`); None for the run's validation set.
        html: whether to write report.html, too.
        onnx: exported file of the detector, which is run in its place; naming is not measured then.
        note: options or inputs to note beside the results once all files are written.

    Raises:
        ValueError: no data set is given and the run has none, or `onnx` was exported from other weights.
    """
    config = trained.config
    inference: DatasetDetector = (
        build_inference(trained, size=size) if onnx is None else OnnxInference(_exported(trained, onnx), size=size)
    )
    is_own_set = index is None
    if index is None:
        index = load_validation_index(config)
    if index is None:
        raise ValueError("the run's config has no validation set; give --annotations, --images and --format")
    complete = replace(
        note or EvaluationNote(),
        weights_sha256=sha256_of(trained.weights) if is_main() and trained.weights is not None else None,
        is_of_own_set=is_own_set and size is None and onnx is None and not trained.experts.folders,
    )
    queries = queries_of_index(trained, index)
    evaluator = detect_all(trained, index, queries, inference=inference, engine=engine)
    evaluation = None
    if is_main():
        evaluation = _measured(
            trained, inference, index, queries.text, evaluator, output=output, html=html, note=complete
        )
    return cast(Evaluation, broadcast(evaluation))


def _exported(trained: TrainedDetector, path: Path) -> DetectionSession:
    """Open the file that a detector was exported to.

    Raises:
        ValueError: the file was not written by `ovd export`, or was exported from other weights.
    """
    session = DetectionSession(path, threads=torch.get_num_threads())
    if trained.weights is None:
        return session
    file_sha256, own_sha256 = session.usage.weights_sha256, sha256_of(trained.weights)
    if file_sha256 is None:
        if is_main():
            warn(
                f"{path} does not record which weights it was exported from, so it may not belong to "
                f"{trained.weights}; export it again with this version"
            )
    elif file_sha256 != own_sha256:
        raise ValueError(
            f"{path} was exported from weights of sha256 {file_sha256}; those of {trained.weights} have {own_sha256}. "
            "Export this run again, or give the run that the file was exported from"
        )
    return session


def _measured(
    trained: TrainedDetector,
    inference: DatasetDetector,
    index: AnnotationIndex,
    text: Float[Tensor, "C D"],
    evaluator: BoxEvaluator,
    *,
    output: Path,
    html: bool,
    note: EvaluationNote,
) -> Evaluation:
    """Compute the metrics of the detections, and write all files, the note last."""
    output.mkdir(parents=True, exist_ok=True)
    write_results(output / "results.json", evaluator.results())
    measures = measure_results(evaluator, exhaustive=index.exhaustive_truth, own_threshold=inference.threshold)
    print_measures(measures)
    write_measures(measures, output, index=index, note=EvaluationNote(options=note.options))
    naming = None
    if isinstance(inference, Inference):  # naming is measured on the embeddings of a single detector
        naming = naming_of(trained, inference, index, text)
        print(format_naming(naming, group_average_precision(measures.evaluation.classes)))
        write_naming(naming, output)
    if html:
        data = report_data(
            measures,
            title=trained.display_name,
            index=index,
            naming=None if naming is None else naming.confusions,
            is_trained=isin_names((category.name for category in measures.truth.categories), trained.classes),
        )
        write_html_report(data, output)
    write_note(output, note)
    return measures.evaluation


def naming_of(
    trained: TrainedDetector, inference: Inference, index: AnnotationIndex, text: Float[Tensor, "C D"]
) -> NamingReport:
    """Measure how often CLIP and the detector name the true boxes of a data set correctly.

    Args:
        text: unit text embeddings of the data set's classes, as the detector is queried with them
            (`queries_of_index`).
    """
    config = trained.config
    original_clip = load_original_clip(config)
    options = CropOptions(views=((1.0, 1.0),))
    crops = build_crop_encoder(original_clip, options, inference.compute, section="naming")
    # Naming needs no scores, and so neither the detection options nor the second look.
    naming_inference = replace(inference, options=DetectionOptions(), second_look=None, calibration=trained.calibration)
    clip_text = None
    if trained.detector.name_offsets is not None:
        clip_text = evaluation_text(config, trained.clip, index.names, index.synonyms)
    return measure_naming(
        naming_inference,
        backbone_from_visual(original_clip.model.visual),
        text,
        index,
        evaluation_loading(config),
        clip_text=clip_text,
        crops=crops,
        max_images=NAMING_IMAGES,
    )
