"""Evaluating a results file: no detector, no images."""

from pathlib import Path
from typing import Literal, assert_never

from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.lvis import LVISEvaluator
from ovd.evaluation.precision_recall import Engine
from ovd.evaluation.report import format_table, write_report
from ovd.evaluation.results import load_results


def evaluate_results_file(
    annotations: Path,
    results: Path,
    format: Literal["lvis", "coco"],
    engine: Engine = "hotcoco",
    output_dir: Path | None = None,
) -> dict[str, float]:
    """Prints the metrics with their protocols, writes the report's files and returns the metrics.

    Args:
        annotations: annotation file in LVIS or COCO JSON.
        results: file in COCO results format, see `ovd.evaluation.results`.
        output_dir: where the report goes; None writes none.

    Raises:
        ValueError: a faulty file; names it and the record.
    """
    evaluator: BoxEvaluator
    match format:
        case "lvis":
            evaluator = LVISEvaluator(annotations, (), engine=engine)
        case "coco":
            evaluator = COCOEvaluator(annotations, (), engine=engine)
        case _:
            assert_never(format)
    evaluator.add_results(load_results(results), source=str(results))
    evaluation = evaluator.evaluate()
    print(format_table(evaluation))
    if output_dir is not None:
        write_report(evaluation, output_dir)
    return evaluation.metrics
