"""Find and load trained detectors, and build their inference."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ovd.build.crops import build_second_look
from ovd.build.detector import build_detector, load_original_clip, resolve_compute
from ovd.build.experts import add_experts, check_experts
from ovd.clip.load import Clip
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config
from ovd.data.images.pixels import checked_size, warn_of_other_size
from ovd.distributed import is_main
from ovd.engine import checkpoint
from ovd.engine.notes import Notes
from ovd.engine.weights_file import check_fit, load_into, load_weights
from ovd.experts.folder import DESCRIPTION, read_expert
from ovd.experts.group import NO_EXPERTS, ExpertGroup
from ovd.files import refuse_missing_run
from ovd.inference import BatchDetector, Inference
from ovd.model.detection_options import DetectionOptions
from ovd.model.detector import Detector
from ovd.model.low_rank import with_adapter_names
from ovd.model.score_calibration import ScoreCalibration
from ovd.precision import Compute
from ovd.text.encoder import text_tower_fingerprint
from ovd.warn import warn


@dataclass(frozen=True)
class TrainedDetector:
    """A detector with its config and the CLIP model whose text tower encodes its classes."""

    detector: Detector
    config: TrainConfig
    clip: Clip
    classes: tuple[str, ...]
    """Names of the classes that the detector was trained on."""
    calibration: ScoreCalibration | None = None
    """Score calibration from the end of training; None if nothing was held out to calibrate on."""
    weights: Path | None = None
    """File that the weights were read from."""
    mean_example: Float[Tensor, " D"] | None = None
    """Mean of CLIP's unit embeddings of crops of true boxes held out of training, stored with the calibration; with it,
    prompts.py moves the rows of example pictures to where the rows of texts are."""
    experts: ExpertGroup = NO_EXPERTS
    """Experts that answer beside the detector and belong to it (`check_experts`)."""
    folder: Path | None = None
    """Run or checkpoint folder that the detector was loaded from, as it was given."""

    @property
    def display_name(self) -> str:
        """Name in messages: the detector's folder, which may be elsewhere than its config says."""
        return str(self.folder or self.config.output)

    @property
    def active_calibration(self) -> ScoreCalibration | None:
        """Calibration of detections; None with `eval.ensemble`, since it is fitted to scores without CLIP's."""
        return self.calibration if self.config.eval.ensemble is None else None

    @property
    def threshold(self) -> float | None:
        """Calibrated score threshold for the config's post-processing; None if the calibration is not for that."""
        return None if self.active_calibration is None else self.active_calibration.threshold_for(self.config.eval)


def find_checkpoint(path: Path) -> checkpoint.Checkpoint:
    """Find the newest checkpoint of a run folder, or that of a checkpoint folder, to evaluate or to start from.

    Raises:
        ValueError: there is no checkpoint with intact weights.
    """
    if (path / checkpoint.MANIFEST).is_file():
        return checkpoint.read(path, check_all_files=False)
    refuse_missing_run(path)
    found = checkpoint.latest(path, check_all_files=False)
    if found is not None:
        return found
    if (path / "config.yaml").is_file():
        raise ValueError(
            f"{path} has no checkpoint: its training has not saved one yet, or stopped before; start the training again"
        )
    if (path / DESCRIPTION).is_file():
        base = read_expert(path).description.base
        raise ValueError(f"{path} is the folder of an expert; use its detector, {base}, with --expert {path}")
    raise ValueError(f"{path} is neither a run folder nor a checkpoint folder: it has no step-*/manifest.json")


def stored_config(found: checkpoint.Checkpoint) -> TrainConfig:
    """Return the config that the detector of a checkpoint was trained with.

    Raises:
        ConfigError: the checkpoint is not of a detector, but of an alignment, or its config is of an earlier version.
    """
    return parse_config(found.config_with_clip_path(), TrainConfig, f"{found.folder}/state.json")


def describe_expert_run(run: Path, config: TrainConfig) -> str:
    """Describe an expert's run for messages: it is no detector to use alone."""
    return f"{run} is the run of an expert of {config.init_from}; alone, it may have forgotten all other classes"


def _warn_of_expert_run(path: Path, config: TrainConfig) -> None:
    """Warn that the run of an expert is loaded as a detector.

    Args:
        path: run folder or checkpoint folder of the expert.
    """
    runs = [folder for folder in (path, path.parent) if (folder / "expert" / DESCRIPTION).is_file()]
    expert = f"--expert {runs[0]} (in Python: experts=)" if runs else "its expert"
    warn(f"{describe_expert_run(path, config)}: use {config.init_from} with {expert}")


def load_detector(
    path: Path | str,
    device: str | None = None,
    *,
    experts: ExpertGroup = NO_EXPERTS,
    warns: bool = True,
) -> TrainedDetector:
    """Load a trained detector: the averaged weights, in eval mode. Leaves torch's global random state as it is.

    Args:
        path: run folder or checkpoint folder.
        device: replaces the device of the run's config.
        experts: experts that answer beside the detector, wherever it detects.
        warns: whether to warn if this is the run of an expert, which knows its own names alone.

    Raises:
        ValueError: there is no intact checkpoint, its weights do not fit its config, or the config's CLIP model no
            longer has the text tower that the detector was trained with.
    """
    found = find_checkpoint(Path(path))
    config = stored_config(found)
    if device is not None:
        config = config.model_copy(update={"train": config.train.model_copy(update={"device": device})})
    clip = load_original_clip(config)
    check_text_tower(found, clip)
    classes = found.notes.classes
    detector = _build_for_loading(config, clip, num_classes=len(classes))
    load_into(detector, found.weights)
    attached = found.attached()
    calibration = stored_calibration(found.notes, attached)
    if experts.folders:  # without experts the weights need not be hashed
        check_experts(experts, found.weights)
    if warns and config.expert is not None and is_main():
        _warn_of_expert_run(Path(path), config)
    return TrainedDetector(
        detector.eval(),
        config,
        clip,
        classes,
        calibration,
        weights=found.weights.absolute(),
        mean_example=attached.get("mean_example"),
        experts=experts,
        folder=Path(path),
    )


def weights_file(path: Path) -> Path:
    """Return the weights file of a run folder or a checkpoint folder; a file is returned as it is.

    Raises:
        ValueError: there is no intact checkpoint.
    """
    return path if path.is_file() else find_checkpoint(path).weights


def stored_calibration(notes: Notes, attached: Mapping[str, Tensor]) -> ScoreCalibration | None:
    """Return the calibration that a checkpoint stores in its notes and its tensor `trained_text`; None if none."""
    if notes.calibration is None:
        return None
    return ScoreCalibration.from_json(notes.calibration, attached["trained_text"])


def check_text_tower(found: checkpoint.Checkpoint, clip: Clip) -> None:
    """Check that a checkpoint's detector was trained with this CLIP model's text tower.

    Raises:
        ValueError: the detector was trained with another text tower, or the checkpoint is not of a detector.
    """
    if found.notes.text_tower is None:
        raise ValueError(
            f"{found.folder} is not the checkpoint of a detector; the folder of an aligned model is used as clip.name"
        )
    if found.notes.text_tower != text_tower_fingerprint(clip):
        raise ValueError(f"{found.folder} was trained with a different text tower than that of the config's CLIP model")


def initialize(detector: Detector, init_from: Path, clip: Clip) -> Path:
    """Load the weights that a new run starts from, from a run folder, a checkpoint folder or a weights file.

    Learned names start at their text rows; adapters and the side branch start without effect.

    Returns:
        The weights file.

    Raises:
        ValueError: the weights do not fit, or come from a run with another text tower than that of `clip`.
    """
    if init_from.is_file():
        path = init_from
    else:
        found = find_checkpoint(init_from)  # reads the weights to check that they are intact
        check_text_tower(found, clip)
        path = found.weights
    tensors = with_adapter_names(load_weights(path), detector)
    for name, tensor in detector.state_dict().items():
        if name == "name_offsets" or name.startswith("side."):
            tensors.setdefault(name, tensor)
    check_fit(detector, tensors, source=path)
    detector.load_state_dict(tensors)
    return path


def build_start_detector(config: TrainConfig, compute: Compute) -> Detector | None:
    """Build the frozen starting detector of `train.start_distillation`; return None if that or `init_from` is not set.

    Raises:
        ValueError: as `initialize`.
    """
    if not config.train.start_distillation or config.init_from is None:
        return None
    clip = load_original_clip(config)
    detector = _build_for_loading(config, clip)
    initialize(detector, config.init_from, clip)
    return compute.freeze(detector)


def _build_for_loading(config: TrainConfig, clip: Clip, *, num_classes: int = 0) -> Detector:
    """Build a detector whose weights will be replaced; leaves torch's global random state as it is."""
    with torch.random.fork_rng(devices=[]):
        return build_detector(config, clip, num_classes=num_classes)


def build_inference(
    trained: TrainedDetector,
    *,
    size: int | None = None,
    prefilter: float | None = None,
    options: DetectionOptions | None = None,
) -> BatchDetector:
    """Build the inference of a trained detector with its experts.

    Args:
        trained, size, prefilter, options: as for `build_own_inference`; the last two apply to the experts, too.

    Raises:
        ExpertError: an expert is missing or damaged.
        ValueError: as `build_own_inference`.
    """
    own = build_own_inference(trained, size=size, prefilter=prefilter, options=options)
    if not trained.experts.folders:
        return own
    return add_experts(own, trained.experts, prefilter=prefilter, options=options)


def build_own_inference(
    trained: TrainedDetector,
    *,
    size: int | None = None,
    prefilter: float | None = None,
    options: DetectionOptions | None = None,
) -> Inference:
    """Build the inference of a trained detector without its experts.

    The detector is moved to its device and put into eval mode. It is frozen, so that tensors computed from its weights
    alone are computed once for all images.

    Args:
        size: longest side in pixels that images are resized to; by default as in training.
        prefilter: replaces `prefilter` in the post-processing settings.
        options: post-processing settings, for scores without CLIP's; by default the config's `eval` section.

    Raises:
        ValueError: the size is under 32 px, or `prefilter` is not between 0 and 1.
    """
    config = trained.config
    used: DetectionOptions = options or config.eval
    if prefilter is not None:
        used = used.with_prefilter(prefilter)
    longest_side = config.data.size if size is None else checked_size(size)
    if trained.threshold is not None:
        warn_of_other_size(config.data.size, longest_side)
    compute = resolve_compute(config)
    return Inference(
        compute.freeze(trained.detector),
        size=longest_side,
        options=used,
        low_precision=compute.low_precision,
        second_look=build_second_look(config, used.second_look),
        calibration=trained.active_calibration if options is None else trained.calibration,
    )
