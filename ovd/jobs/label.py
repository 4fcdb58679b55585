"""Label images with a detector and write the labels to files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ovd.build.trained import TrainedDetector, build_inference
from ovd.data.loading.loader import LoaderOptions
from ovd.data.report import DataReport
from ovd.engine.checkpoint import MANIFEST
from ovd.experts.folder import DESCRIPTION, find_expert
from ovd.experts.group import NO_EXPERTS
from ovd.files import sha256_of
from ovd.inference import BatchDetector
from ovd.jobs.label_images import Thresholds, label_images
from ovd.jobs.label_journal import LabelJournal
from ovd.jobs.label_output import LabelOutput, WrittenLabels, printable
from ovd.jobs.queries import Query, describe_thresholds


@dataclass(frozen=True)
class LabelJob:
    """Images to label, queries, thresholds and output."""

    root: Path
    """Folder that contains all images; image names are relative to it."""
    paths: Sequence[Path]
    """Paths of the images."""
    queries: Sequence[Query]
    """Queries by class name, each name once."""
    output: LabelOutput
    loading: LoaderOptions
    threshold: float | None = None
    """Score threshold of queries without their own; None for the detector's."""
    overlapping: bool = False
    """Whether every box above its threshold is kept; otherwise only the best of boxes that overlap."""
    size: int | None = None
    """Longest side of an image in pixels; None for the size used in training."""


def label_into_files(trained: TrainedDetector, labeling: LabelJob) -> WrittenLabels:
    """Label images and write the files, resuming an interrupted call.

    Args:
        trained: detector loaded from disk.

    Raises:
        ValueError: no image can be read, another process is labeling into these files, an interrupted call had other
            settings, or as raised by `LabelOutput.write`.
    """
    inference, output = build_inference(trained, size=labeling.size), labeling.output
    threshold = inference.shown_threshold if labeling.threshold is None else labeling.threshold
    min_scores = {query.name: query.threshold(threshold) for query in labeling.queries}
    report = DataReport(stops=False)
    with LabelJournal(output.journal, _settings(trained, inference, labeling, min_scores)) as journal:
        if journal.is_resumed:
            print(printable(f"resuming from {output.journal}"))
        labels = label_images(
            trained,
            inference,
            labeling.root,
            labeling.paths,
            Thresholds(min_scores, overlapping=labeling.overlapping),
            report,
            journal,
            labeling.loading,
        )
        kind = "probability" if inference.is_calibrated else "score"
        num_shown = output.write(labels, list(min_scores.values()), report, kind=kind)
        journal.remove()
    return WrittenLabels(labels.kept, report, output, describe_thresholds(labeling.queries, threshold, kind), num_shown)


def _settings(
    trained: TrainedDetector, inference: BatchDetector, labeling: LabelJob, min_scores: Mapping[str, float]
) -> dict[str, Any]:
    """Return all settings that the boxes of an image depend on."""
    experts = trained.experts
    assert trained.weights is not None
    return {
        "ovd": version("ovd"),
        "checkpoint": sha256_of(trained.weights.parent / MANIFEST),
        "experts": [sha256_of(find_expert(folder) / DESCRIPTION) for folder in experts.folders],
        # Journals have always stored the default as null.
        "same_place": None if experts.same_place == NO_EXPERTS.same_place else experts.same_place,
        "nearest": experts.nearest,
        "names": list(min_scores),
        "thresholds": list(min_scores.values()),
        "overlapping": labeling.overlapping,
        "size": labeling.size,
        "root": str(labeling.root),
        "precision": "bf16" if inference.low_precision else "float32",
    }
