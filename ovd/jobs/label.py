"""Label images with a detector: which images, which names, into which files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ovd.build.trained import TrainedDetector, build_inference
from ovd.data.loading.loader import Loading
from ovd.data.report import DataReport
from ovd.engine.checkpoint import MANIFEST
from ovd.experts.folder import DESCRIPTION, find_expert
from ovd.experts.group import NO_EXPERTS
from ovd.files import sha256_of
from ovd.inference import BatchDetector
from ovd.jobs.label_images import Thresholds, label_images
from ovd.jobs.label_journal import LabelJournal
from ovd.jobs.label_output import LabelOutput, WrittenLabels, printable
from ovd.jobs.queries import Query


@dataclass(frozen=True)
class Labelling:
    """Which images are labelled with what."""

    root: Path
    """A folder that all images lie in; their names start there."""
    paths: Sequence[Path]
    """The images."""
    queries: Sequence[Query]
    """What is asked for: names, each once."""
    output: LabelOutput
    loading: Loading
    threshold: float | None = None
    """The least score of a box whose name has none of its own; by default the detector's."""
    overlapping: bool = False
    """Whether several names may stay at one place."""
    size: int | None = None
    """Longest side of an image in pixels; by default as trained."""


def label_into_files(trained: TrainedDetector, labelling: Labelling) -> WrittenLabels:
    """Label images and write the files; go on from an interrupted call, and say so.

    Args:
        trained: loaded from disk.

    Raises:
        ValueError: no image can be read, another call labels into these files or an interrupted one had other settings,
            or as `LabelOutput.write`.
    """
    inference, output = build_inference(trained, size=labelling.size), labelling.output
    threshold = inference.shown_threshold if labelling.threshold is None else labelling.threshold
    least = {query.name: query.threshold(threshold) for query in labelling.queries}
    report = DataReport(stops=False)
    with LabelJournal(output.journal, _settings(trained, inference, labelling, least)) as journal:
        if journal.goes_on:
            print(printable(f"goes on from {output.journal}"))
        labels = label_images(
            trained,
            inference,
            labelling.root,
            labelling.paths,
            Thresholds(least, overlapping=labelling.overlapping),
            report,
            journal,
            labelling.loading,
        )
        kind = "probability" if inference.is_calibrated else "score"
        num_shown = output.write(labels, list(least.values()), report, kind=kind)
        journal.remove()
    return WrittenLabels(labels.kept, report, output, f"{kind} of at least {threshold:.2f}", num_shown)


def _settings(
    trained: TrainedDetector, inference: BatchDetector, labelling: Labelling, least: Mapping[str, float]
) -> dict[str, Any]:
    """All that the boxes of an image depend on."""
    experts = trained.experts
    assert trained.weights is not None
    return {
        "ovd": version("ovd"),
        "checkpoint": sha256_of(trained.weights.parent / MANIFEST),
        "experts": [sha256_of(find_expert(folder) / DESCRIPTION) for folder in experts.folders],
        # The default has been written as null since there are journals.
        "same_place": None if experts.same_place == NO_EXPERTS.same_place else experts.same_place,
        "nearest": experts.nearest,
        "names": list(least),
        "thresholds": list(least.values()),
        "overlapping": labelling.overlapping,
        "size": labelling.size,
        "root": str(labelling.root),
        "precision": "bf16" if inference.low_precision else "float32",
    }
