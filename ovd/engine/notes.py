"""Notes on a run that its checkpoints store, besides tensors and config."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class SampleCounts(NamedTuple):
    """Numbers of samples by source."""

    images: int = 0
    """Number of images of the detection data."""
    pairs: int = 0
    """Number of image-text pairs."""


NO_SAMPLES = SampleCounts()


@dataclass(frozen=True)
class AveragedCheckpoints:
    """The two checkpoints whose weights were averaged."""

    first: str
    """Folder of the first checkpoint."""
    second: str
    """Folder of the second checkpoint."""
    weight: float
    """Weight of the second checkpoint; the first has 1 - weight."""
    first_sha256: str | None = None
    """Hash of the first checkpoint's weights; None in averages of early versions."""
    second_sha256: str | None = None
    """Hash of the second checkpoint's weights; None in averages of early versions."""


@dataclass(frozen=True)
class EarlyStopNotes:
    """State of early stopping, in a run with `train.patience`."""

    evaluations: tuple[tuple[int, float], ...] = ()
    """Step and metric of each evaluation."""
    is_over: bool = False
    """Whether the run has ended, before its last step or at it."""

    @property
    def best_step(self) -> int:
        """Step of the best evaluation; of equally good ones, the first."""
        return max(self.evaluations, key=lambda evaluation: evaluation[1])[0]


@dataclass(frozen=True, kw_only=True)
class Notes:
    """JSON-able notes on a run. Notes of other versions may lack some fields, or have more."""

    text_tower: str | None = None
    """Fingerprint of the text tower that the detector was trained with."""
    classes: tuple[str, ...] = ()
    """Class names that the detector was trained on."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the training data, by the name of each part, such as `annotations`."""
    first_samples: SampleCounts = NO_SAMPLES
    """Numbers of samples that earlier stages have drawn; the run continues their order."""
    init_sha256: str | None = None
    """Hash of the weights that the run started from; None for CLIP's."""
    calibration: Mapping[str, Any] | None = None
    """`ScoreCalibration.to_json`; its tensor is attached to the checkpoint as `trained_text`."""
    is_calibration_pending: bool = False
    """Whether the run was stopped during the calibration after its last step; a resumed run repeats it."""
    early_stop: EarlyStopNotes | None = None
    """State of early stopping; None without `train.patience`."""
    ensemble: AveragedCheckpoints | None = None
    """The averaged checkpoints, if the weights are an average of two."""
    has_clip: bool = False
    """Whether the checkpoint's folder holds the CLIP model that the detector needs."""
    before: Mapping[str, float] | None = None
    """Held-out losses by name before the training, in the run of an alignment."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Notes":
        """Read the output of `to_json`; unknown fields, from another version, are ignored."""
        known = {name: content[name] for name in cls.__dataclass_fields__ if content.get(name) is not None}
        if "classes" in known:
            known["classes"] = tuple(known["classes"])
        if "first_samples" in known:
            known["first_samples"] = SampleCounts(*known["first_samples"])
        if "ensemble" in known:
            known["ensemble"] = AveragedCheckpoints(**known["ensemble"])
        if "early_stop" in known:
            evaluations = tuple((int(step), metric) for step, metric in known["early_stop"]["evaluations"])
            known["early_stop"] = EarlyStopNotes(evaluations, known["early_stop"].get("is_over", False))
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Return the notes by name, without those that have their default value."""
        nothing = vars(Notes())
        return {name: value for name, value in asdict(self).items() if value != nothing[name]}
