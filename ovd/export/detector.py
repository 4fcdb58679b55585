"""Export of a trained detector as an ONNX file, with its text tower beside it."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from ovd.build.trained import TrainedDetector, describe_expert_run
from ovd.export.graph import DetectionGraph
from ovd.export.text import export_text
from ovd.export.tracing import check_size, write_onnx
from ovd.files import sha256_of
from ovd.onnx.session import METADATA, Usage
from ovd.onnx.text import text_files
from ovd.warn import warn

CLASSES = 5
"""Number of text rows in the example input."""


def export_detector(trained: TrainedDetector, path: Path, *, with_text: bool = True, plain: bool = False) -> list[Path]:
    """Write a trained detector as one ONNX file, and its text tower and tokenizer beside it.

    The graph scores all names at all points; a warning says so if the run has a prefilter.

    Args:
        path: file name ending in `.onnx`.
        with_text: whether to write the text tower, too.
        plain: whether to leave out the run's second look and score ensemble, which a graph cannot contain.

    Returns:
        The files that were written.

    Raises:
        ValueError: the suffix is not `.onnx`; the run has experts, trains an expert, or has a second look or a score
            ensemble without `plain`; the tokenizer is not CLIP's; the weights are too large for one file; or a package
            is missing.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"{path.name}: the name of the exported file must end in .onnx")
    trained = _exportable(trained, plain=plain)
    check_size(trained.detector, path)  # also before the text tower, whose export takes a while
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path]
    if with_text:  # first, since its tokenizer may be refused
        export_text(trained.clip, trained.config.bank.templates, path)
        files += text_files(path)
    options, config = trained.config.eval, trained.config
    detector = copy.deepcopy(trained.detector).float().cpu().to(memory_format=torch.contiguous_format).eval()
    usage = Usage(
        size=config.data.size,
        size_divisor=detector.size_divisor,
        threshold=trained.threshold,
        dim=trained.clip.dim,
        weights_sha256=None if trained.weights is None else sha256_of(trained.weights),
    )
    write_detector(DetectionGraph(detector, options, trained.calibration), path, usage)
    return files


def write_detector(graph: DetectionGraph, path: Path, usage: Usage) -> None:
    """Write a detector's graph as an ONNX file, with its `Usage` in the metadata."""
    divisor = usage.size_divisor
    generator = torch.Generator().manual_seed(0)
    example = (
        torch.randint(0, 256, (2, 2 * divisor, 3 * divisor, 3), dtype=torch.uint8, generator=generator),
        torch.tensor([[2 * divisor, 3 * divisor], [divisor, 2 * divisor]]),
        F.normalize(torch.randn(CLASSES, usage.dim, generator=generator), dim=1),
    )
    rows = {0: "batch", 1: "detections"}
    write_onnx(
        graph,
        example,
        path,
        inputs={"images": {0: "batch", 1: "height", 2: "width"}, "sizes": {0: "batch"}, "text": {0: "names"}},
        outputs={"boxes": rows, "scores": rows, "classes": rows, "counts": {0: "batch"}},
        metadata={METADATA: json.dumps(vars(usage))},
    )


def _exportable(trained: TrainedDetector, *, plain: bool) -> TrainedDetector:
    """Return the detector with only those settings of post-processing that a graph can contain."""
    if trained.experts.folders:
        raise ValueError("a detector with experts cannot be exported; load it without them")
    config = trained.config
    if config.expert is not None:
        raise ValueError(
            f"{describe_expert_run(config.output, config)}, and experts cannot be exported; export {config.init_from}"
        )
    beyond = [name for name in ("second_look", "ensemble") if getattr(config.eval, name) is not None]
    if beyond and not plain:
        raise ValueError(
            f"eval.{' and eval.'.join(beyond)} of the run cannot be exported; --plain leaves it out and changes scores"
        )
    if config.eval.prefilter is not None:
        warn(
            f"eval.prefilter={config.eval.prefilter:g} is not exported: the graph scores all names at all points, "
            "which takes more time and memory than the run if there are many names"
        )
    section = config.eval.model_copy(update=dict.fromkeys(beyond))
    return replace(trained, config=config.model_copy(update={"eval": section}))
