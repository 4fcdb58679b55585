"""Calibrate a detector on the images and names that were held out of its training."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ovd.build.data import HeldOut, evaluation_loading
from ovd.build.detector import resolve_device
from ovd.build.prompts import example_encoder
from ovd.build.text import queries_of_index
from ovd.build.trained import TrainedDetector, build_own_inference
from ovd.config.training import TrainConfig
from ovd.data.formats.supported import FORMATS
from ovd.data.images.image_file import ImageError
from ovd.data.images.read import read_image
from ovd.engine.signals import StopRequest
from ovd.evaluation.calibrate import CalibrationError, calibrate
from ovd.format_count import format_count
from ovd.model.score_calibration import ScoreCalibration
from ovd.progress import progress
from ovd.warn import warn


def calibrate_detector(
    trained: TrainedDetector, held_out: HeldOut, stop: StopRequest | None = None
) -> ScoreCalibration:
    """Fit the score calibration of a detector (evaluation/calibrate.py).

    Args:
        trained: detector without a calibration.
        held_out: images and names that it was not trained on.

    Raises:
        CalibrationError: no true box of the held-out images is detected.
        Stopped: a stop was requested.
    """
    config = trained.config
    return calibrate(
        build_own_inference(trained),
        queries_of_index(trained, held_out.index).text,
        held_out.index,
        evaluation_loading(config),
        held_out=held_out.names,
        is_exhaustive=not FORMATS[held_out.index.format].is_federated,
        name_bias=None if config.train.calibration is None else config.train.calibration.name_bias,
        stop=stop,
    )


def readable_part(held_out: HeldOut, stop: StopRequest) -> HeldOut:
    """Drop the held-out images that cannot be read, with a warning for each.

    Raises:
        CalibrationError: no image can be read.
        Stopped: a stop was requested.
    """
    index = held_out.index
    readable = []
    for row in progress(stop.raise_if_received(range(len(index))), len(index), "reading held-out images"):
        record = index.record(row)
        try:
            read_image(record.path, expected_size=(record.height, record.width))
            readable.append(row)
        except ImageError as error:
            warn(f"{error}; the image is left out of the calibration", code=error.code)
    if not readable:
        raise CalibrationError(f"{index.path}: none of {format_count(len(index), 'held-out image')} can be read")
    return held_out if len(readable) == len(index) else replace(held_out, index=index.take(np.array(readable)))


def mean_example(config: TrainConfig, held_out: HeldOut, stop: StopRequest) -> Float[Tensor, " D"]:
    """Compute the mean of CLIP's unit embeddings of the true boxes in the held-out images (build/prompts.py).

    Raises:
        ImageError: an image is missing or cannot be read.
        Stopped: a stop was requested.
    """
    encoder, index = example_encoder(config), held_out.index
    device = resolve_device(config)
    total, count = torch.zeros(0), 0
    for row in progress(stop.raise_if_received(range(len(index))), len(index), "embedding true boxes"):
        record = index.record(row)
        boxes = torch.from_numpy(record.labels.boxes).float()
        if len(boxes) == 0:
            continue
        pixels = read_image(record.path, expected_size=(record.height, record.width))
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)
        (rows,) = encoder(image, torch.tensor([pixels.shape[:2]], device=device), [boxes.to(device)])
        total = rows.float().sum(dim=0).cpu() + (total if count else 0)
        count += len(boxes)
    return total / count
