"""How far a detector in training has left its shortcuts, measured on a batch.

The parameters alone do not tell: in trained detectors what the learned path adds was up to five times as long as the
norm of gate times projection would have it, since its features are far from uncorrelated.
"""

from collections.abc import Callable

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ovd.model.detector import Detector
from ovd.model.gates import GatedProjection, GatedShortcuts
from ovd.precision import autocast


@torch.no_grad()
def gate_statistics(detector: Detector, images: UInt8[Tensor, "B 3 H W"], *, low_precision: bool) -> dict[str, float]:
    """Look into a gated detector in one more pass over a batch's images, which leaves no trace in it.

    Returns:
        For each of P3..P7 and the head, as far as there are shortcuts,
        `added/P3`: length of what the learned path adds there, the shortcut's being 1 (root of the mean square over
        all points, those in the padding too);
        `gate/P3`: mean of |gate|;
        and with a head shortcut `filter/head`: mean absolute weight of its filter.
    """
    shortcuts = detector.shortcuts
    assert isinstance(shortcuts, GatedShortcuts), "a detector without shortcuts has no gates"
    handles = []

    def watch(module: nn.Module, measure: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """What `measure` makes of the module's outputs: one for each level where levels share it."""
        seen: list[Tensor] = []
        handles.append(
            module.register_forward_hook(
                lambda _module, _inputs, output: seen.append(measure(output.float()).flatten())
            )
        )
        return seen

    learned = _learned_paths(shortcuts, detector.strides)
    squares = {part: watch(path, lambda output: output.square().sum(dim=1)) for part, path in learned.items()}
    weights = watch(shortcuts.head.filter.weights, torch.abs) if shortcuts.head is not None else []
    try:
        # Compiled code may have been made without the hooks.
        with torch.compiler.set_stance("force_eager"), autocast(images.device, low_precision):
            detector(images)
    finally:
        for handle in handles:
            handle.remove()
    added = {f"added/{part}": torch.cat(seen).mean().sqrt().item() for part, seen in squares.items()}
    gates = {f"gate/{part}": path.gate.abs().mean().item() for part, path in learned.items()}
    return added | gates | ({"filter/head": torch.cat(weights).mean().item()} if weights else {})


def _learned_paths(shortcuts: GatedShortcuts, strides: list[int]) -> dict[str, GatedProjection]:
    """By level, P3 being the one of stride 8, and `head`."""
    paths: dict[str, GatedProjection] = {}
    if shortcuts.pyramid is not None:
        for stride, path in zip(strides, shortcuts.pyramid.learned, strict=True):
            assert isinstance(path, GatedProjection)
            paths[f"P{stride.bit_length() - 1}"] = path
    if shortcuts.head is not None:
        paths["head"] = shortcuts.head.learned
    return paths
