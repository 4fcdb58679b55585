"""Calibrate a detector on what was held out of its training."""

import torch

from ovd.build.data import HeldOut
from ovd.build.detector import TrainedDetector, build_inference
from ovd.build.text import text_of_index
from ovd.data.formats import FORMATS
from ovd.evaluation.calibrate import calibrate
from ovd.model.detection_options import DetectionOptions
from ovd.model.score_calibration import ScoreCalibration
from ovd.model.similarity import with_offsets


def calibrate_detector(
    trained: TrainedDetector, held_out: HeldOut, *, options: DetectionOptions | None = None
) -> ScoreCalibration:
    """Fit a detector's calibration (evaluation/calibrate.py).

    Args:
        trained: without a calibration.
        held_out: what it was not trained on.
        options: settings of post-processing; by default those of its config.

    Raises:
        CalibrationError: nothing is found in the held-out images.
    """
    config = trained.config
    text = text_of_index(config, trained.clip, held_out.index)
    if trained.detector.name_offsets is not None:
        text = with_offsets(text, torch.arange(len(text)), trained.detector.name_offsets.detach().cpu())
    return calibrate(
        build_inference(trained, options=options),
        text,
        held_out.index,
        held_out=held_out.names,
        is_exhaustive=FORMATS[held_out.index.format].is_exhaustive,
        name_bias=None if config.train.calibration is None else config.train.calibration.name_bias,
        batch_size=config.eval.batch_size,
        workers=config.data.workers,
    )
