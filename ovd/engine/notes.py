"""What a checkpoint holds of its run besides tensors and config."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class SampleCounts(NamedTuple):
    """Numbers of samples by where they come from."""

    images: int = 0
    """Of the detection data."""
    pairs: int = 0
    """Image-text pairs."""


NO_SAMPLES = SampleCounts()


@dataclass(frozen=True)
class Averaged:
    """The two checkpoints that weights are an average of."""

    first: str
    """Its folder, like `second`."""
    second: str
    weight: float
    """Of the second; the first has the rest."""
    first_sha256: str | None = None
    """Of its weights; None in averages of the first versions."""
    second_sha256: str | None = None


@dataclass(frozen=True)
class EarlyStopNotes:
    """What a run with `train.patience` knows."""

    evaluations: tuple[tuple[int, float], ...] = ()
    """Step and metric of each."""
    is_over: bool = False
    """Whether the run has ended, before its last step or at it."""

    @property
    def best_step(self) -> int:
        """Of the best evaluation, the first of equal ones."""
        return max(self.evaluations, key=lambda evaluation: evaluation[1])[0]


@dataclass(frozen=True, kw_only=True)
class Notes:
    """JSON-able notes of a run; its tensors are `attached`. Those of other versions may lack some, or have more."""

    text_tower: str | None = None
    """Fingerprint of the text tower that the detector was trained with."""
    classes: tuple[str, ...] = ()
    """Names that it was trained on."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Hashes of what it is trained on, by what that is."""
    first_samples: SampleCounts = NO_SAMPLES
    """What earlier stages have drawn."""
    init_sha256: str | None = None
    """Of the weights that it started from; None for CLIP's."""
    calibration: Mapping[str, Any] | None = None
    """`ScoreCalibration.to_json`; its tensor is attached as `trained_text`."""
    early_stop: EarlyStopNotes | None = None
    ensemble: Averaged | None = None
    has_clip: bool = False
    """Whether the checkpoint's folder holds the CLIP model that the detector needs."""
    before: Mapping[str, float] | None = None
    """Losses before the training, of an alignment."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Notes":
        """Those that `to_json` gave. Unknown ones, of another version, are passed over."""
        known = {name: content[name] for name in cls.__dataclass_fields__ if content.get(name) is not None}
        if "classes" in known:
            known["classes"] = tuple(known["classes"])
        if "first_samples" in known:
            known["first_samples"] = SampleCounts(*known["first_samples"])
        if "ensemble" in known:
            known["ensemble"] = Averaged(**known["ensemble"])
        if "early_stop" in known:
            evaluations = tuple((int(step), metric) for step, metric in known["early_stop"]["evaluations"])
            known["early_stop"] = EarlyStopNotes(evaluations, known["early_stop"].get("is_over", False))
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """The notes by name, without those that are not set."""
        nothing = vars(Notes())
        return {name: value for name, value in asdict(self).items() if value != nothing[name]}
