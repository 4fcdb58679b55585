"""Evaluating a results file: no detector, no images."""

from pathlib import Path

from ovd.choices import DataFormatName, Engine
from ovd.data.annotations import NO_OPTIONS, load_truth
from ovd.data.format_options import FormatOptions
from ovd.data.formats import FORMATS
from ovd.data.truth import Truth
from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.lvis import LVISEvaluator
from ovd.evaluation.report import format_table, write_report
from ovd.evaluation.results import load_results


def box_evaluator(
    truth: Truth, format: DataFormatName, category_ids: tuple[int, ...], *, engine: Engine = "hotcoco"
) -> BoxEvaluator:
    """The evaluator of a format's benchmark; see the evaluators for arguments and errors."""
    if FORMATS[format].protocol == "lvis":
        return LVISEvaluator(truth, category_ids, engine=engine)
    return COCOEvaluator(truth, category_ids, engine=engine, groups=FORMATS[format].groups)


def evaluate_results_file(
    annotations: Path,
    results: Path,
    format: DataFormatName,
    engine: Engine = "hotcoco",
    output_dir: Path | None = None,
    *,
    images: Path | None = None,
    options: FormatOptions = NO_OPTIONS,
) -> dict[str, float]:
    """Prints the metrics with their protocols, writes the report's files and returns the metrics.

    Args:
        annotations: the data set that was detected in, as `load_annotations` takes it.
        results: file in COCO results format, see `ovd.evaluation.results`.
        output_dir: where the report goes; None writes none.
        images: folder of images, for formats whose boxes depend on the images' sizes (YOLO).

    Raises:
        ValueError: a faulty file; names it and the record.
    """
    truth = load_truth(annotations, images, format=format, options=options)
    evaluator = box_evaluator(truth, format, (), engine=engine)
    evaluator.add_results(load_results(results), source=str(results))
    evaluation = evaluator.evaluate()
    print(format_table(evaluation))
    if output_dir is not None:
        write_report(evaluation, output_dir)
    return evaluation.metrics
