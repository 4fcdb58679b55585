"""Memory and time that a config's detector needs, counted on torch's meta device without allocating or computing."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ovd.build.detector import build_detector_on_meta
from ovd.config.training import TrainConfig
from ovd.data.loading.buckets import round_up
from ovd.model.detector import Detector

BYTES_FLOAT32 = 4
BYTES_BF16 = 2
MEASURED_UTILIZATION = 0.17
"""Share of an H100's peak (989 TFLOP/s in bf16) measured for CLIP's ResNet-50 with training loop and loader. In the
steps alone it was 0.19, and 0.21 for ConvNeXt-B (docs/speed.md, "On a GPU")."""
OPTIMIZER_COPIES = 5
"""Number of float32 values stored per trained weight: weight, gradient, two moments, average."""


@dataclass(frozen=True)
class Cost:
    """Cost of a detector per image, without the text side and the losses."""

    parameters: int
    trained_parameters: int
    forward_flops: int
    """Operations of the forward pass; a multiplication and an addition count as two."""
    training_flops: int
    """Operations of the forward pass and the backward pass, which takes twice as many; a fully frozen backbone has no
    backward pass."""
    activation_bytes: int
    """Size of the activations kept for the backward pass, all counted as bfloat16. This is a lower bound, since norms
    and losses keep float32."""

    def training_bytes(self, images: int) -> int:
        """Compute the memory, in bytes, of a rank that processes `images` images at a time."""
        frozen = self.parameters - self.trained_parameters
        weights = BYTES_FLOAT32 * (OPTIMIZER_COPIES * self.trained_parameters + 2 * frozen)
        return weights + images * self.activation_bytes

    def training_hours(self, *, steps: int, images: int, peak_tflops: float, utilization: float) -> float:
        """Predict the training time in hours.

        Args:
            steps: number of steps.
            images: number of images per step.
            peak_tflops: peak of all devices together, in TFLOP/s.
            utilization: share of the peak that is reached.
        """
        return steps * images * self.training_flops / (peak_tflops * 1e12 * utilization) / 3600


def count_cost(config: TrainConfig, height: int, width: int) -> Cost:
    """Count the cost of a config's detector for images of one size, padded to the detector's size divisor.

    Raises:
        ValueError: the config's CLIP is unknown, or its backbone is not supported or does not support a setting.
    """
    detector = build_detector_on_meta(config).train()
    divisor = detector.size_divisor
    size = (round_up(height, divisor), round_up(width, divisor))
    counter = FlopCounterMode(display=False)
    with counter:
        elements_of_one = _saved_elements(detector, 1, size)
    elements_of_two = _saved_elements(detector, 2, size)
    forward = counter.get_total_flops()
    backbone = sum(counter.get_flop_counts()["Detector.backbone"].values())
    backbone_learns = any(p.requires_grad for p in detector.backbone.parameters())
    parameters = list(detector.parameters())
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        forward_flops=forward,
        training_flops=3 * forward - (0 if backbone_learns else 2 * backbone),
        activation_bytes=BYTES_BF16 * (elements_of_two - elements_of_one),
    )


def _saved_elements(detector: Detector, num_images: int, size: tuple[int, int]) -> int:
    """Count the tensor elements that a forward pass keeps for the backward pass, without the parameters."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            saved[tensor.untyped_storage()._cdata] = tensor  # kept alive, so that no two storages have the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        detector(torch.empty(num_images, 3, *size, dtype=torch.uint8, device="meta"))
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in saved.values())
