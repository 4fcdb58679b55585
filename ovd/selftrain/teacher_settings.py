"""Description of the weights and settings that a teacher's boxes depend on, which ledgers record."""

import hashlib
import json

from torch import nn

from ovd.experts.inference import ExpertInference
from ovd.inference import BatchDetector
from ovd.model.score_calibration import ScoreCalibration


def describe_settings(inference: BatchDetector) -> str:
    """Describe a detector, its experts and its inference settings in one line, weights by their hashes."""
    precision = "bf16" if inference.low_precision else "float32"
    fingerprint = weights_fingerprint(inference.detector)
    settings = f"sha256 {fingerprint} at {inference.size} px in {precision}, {inference.options!r}"
    if inference.second_look is not None:
        look = inference.second_look
        settings += f", crops by CLIP sha256 {weights_fingerprint(look.backbone)} in {look.views!r}"
    inferences: list[BatchDetector] = [inference]
    if isinstance(inference, ExpertInference):
        settings += f", with {inference.describe_experts()}"
        inferences += [expert.inference for expert in inference.experts]
    calibrations = [_applied_calibration(each) for each in inferences]
    if any(applied is not None for applied in calibrations):
        prints = ("none" if applied is None else _fingerprint(applied) for applied in calibrations)
        settings += f", calibration sha256 {', '.join(prints)}"
    return settings


def _applied_calibration(inference: BatchDetector) -> ScoreCalibration | None:
    """Return the calibration if it affects the boxes; None otherwise.

    A name bias always affects them, the score map only with the settings of post-processing that it was fitted with.
    """
    calibration = inference.calibration
    if calibration is None or not (calibration.name_bias or calibration.applies_to(inference.options)):
        return None
    return calibration


def _fingerprint(calibration: ScoreCalibration) -> str:
    """Return a hash of a calibration, in the form of `weights_fingerprint`."""
    digest = hashlib.sha256(json.dumps(calibration.to_json(), sort_keys=True).encode())
    digest.update(calibration.trained_text.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]
