"""Contribution of the learned path to a detector's embeddings during training, measured on a batch.

The parameters alone are not enough: in trained detectors the learned path's output was up to five times as long as the
norm of gate times projection predicts, since its features are far from uncorrelated.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ovd.model.detector import Detector
from ovd.model.gates import GatedProjection, GatedShortcuts
from ovd.precision import Compute


@torch.no_grad()
def gate_statistics(detector: Detector, images: UInt8[Tensor, "B 3 H W"], compute: Compute) -> dict[str, float]:
    """Measure a gated detector in an additional pass over a batch's images, without changing it.

    Returns:
        For each of P3..P7 and the head, as far as they have shortcuts,
        `added/P3`: length of the learned path's output there, relative to the shortcut (root of the mean square over
        all points, including those in the padding);
        `gate/P3`: mean of |gate|;
        and with a head shortcut `filter/head`: mean absolute weight of its filter.
    """
    shortcuts = detector.shortcuts
    assert isinstance(shortcuts, GatedShortcuts), "a detector without shortcuts has no gates"
    handles = []

    def watch(module: nn.Module, measure: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Collect `measure` of the module's output, less the shortcut that was added to it, once per call."""
        seen: list[Tensor] = []

        def record_output(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            own = output.float() if len(inputs) == 1 else output.float() - inputs[1].float()
            seen.append(measure(own).flatten())

        handles.append(module.register_forward_hook(record_output))
        return seen

    learned = _learned_paths(shortcuts, detector.strides)
    squares = {part: watch(path, lambda output: output.square().sum(dim=1)) for part, path in learned.items()}
    weights = watch(shortcuts.head.filter.weights, torch.abs) if shortcuts.head is not None else []
    try:
        # Code that was compiled before the hooks were registered may not call them.
        with torch.compiler.set_stance("force_eager"), compute.autocast():
            detector(images)
    finally:
        for handle in handles:
            handle.remove()
    added = {f"added/{part}": torch.cat(seen).mean().sqrt().item() for part, seen in squares.items()}
    gates = {f"gate/{part}": path.gate.abs().mean().item() for part, path in learned.items()}
    return added | gates | ({"filter/head": torch.cat(weights).mean().item()} if weights else {})


def _learned_paths(shortcuts: GatedShortcuts, strides: list[int]) -> dict[str, GatedProjection]:
    """Return the learned paths by name: one per level, P3 with the stride nearest to 8, and that of the `head`."""
    paths: dict[str, GatedProjection] = {}
    if shortcuts.pyramid is not None:
        for stride, path in zip(strides, shortcuts.pyramid.learned, strict=True):
            assert isinstance(path, GatedProjection)
            paths[f"P{3 + round(math.log2(stride / 8))}"] = path
    if shortcuts.head is not None:
        paths["head"] = shortcuts.head.learned
    return paths
