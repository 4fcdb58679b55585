"""Evaluating a results file: no detector, no images."""

from pathlib import Path
from typing import Literal, assert_never

from ovd.choices import Engine
from ovd.data.coco_zero_shot import GROUPS
from ovd.evaluation.coco import COCOEvaluator
from ovd.evaluation.evaluator import BoxEvaluator
from ovd.evaluation.lvis import LVISEvaluator
from ovd.evaluation.report import format_table, write_report
from ovd.evaluation.results import load_results

Protocol = Literal["lvis", "coco", "coco_zero_shot", "objects365"]


def box_evaluator(
    annotations: Path, protocol: Protocol, category_ids: tuple[int, ...], *, engine: Engine = "hotcoco"
) -> BoxEvaluator:
    """The evaluator of a benchmark; see the evaluators for arguments and errors."""
    match protocol:
        case "lvis":
            return LVISEvaluator(annotations, category_ids, engine=engine)
        case "coco" | "objects365":
            return COCOEvaluator(annotations, category_ids, engine=engine)
        case "coco_zero_shot":
            return COCOEvaluator(annotations, category_ids, engine=engine, groups=GROUPS)
        case _:
            assert_never(protocol)


def evaluate_results_file(
    annotations: Path,
    results: Path,
    format: Protocol,
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
    evaluator = box_evaluator(annotations, format, (), engine=engine)
    evaluator.add_results(load_results(results), source=str(results))
    evaluation = evaluator.evaluate()
    print(format_table(evaluation))
    if output_dir is not None:
        write_report(evaluation, output_dir)
    return evaluation.metrics
