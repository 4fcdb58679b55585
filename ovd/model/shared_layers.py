"""A copy of a detector that shares the first layers of its backbone, which then run once for both.

The copy's shared modules do not compute: they return the outputs of the original's modules in its last forward pass. So
the copy's own layers run as in a whole detector.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from ovd.model.backbone import Backbone
from ovd.model.detector import Detector

TRACED_CELLS = 2
"""Side of the image that is run to find which modules are called, as a multiple of the backbone's size divisor."""


def copy_sharing_layers(original: Detector, own_layers: int) -> "tuple[Detector, SharedLayers | None]":
    """Copy a detector with its pyramid, head, shortcuts and the backbone's last layers; the other layers are shared.

    Args:
        original: in eval mode.
        own_layers: number of backbone layers, from the output, that the copy owns. With none it shares CLIP's
            projection, too, so that its backbone is the original's.

    Returns:
        The copy, whose shared parameters are the original's own tensors, and the shared layers, whose outputs the copy
        reuses in its own pass through the backbone; None instead if it shares the whole backbone and needs no pass.

    Raises:
        ValueError: the backbone has fewer layers.
    """
    shared = shared_parameters(original.backbone, own_layers)
    memo: dict[int, Any] = {id(parameter): parameter for parameter in shared}
    if own_layers == 0:
        memo[id(original.backbone)] = original.backbone
    copied = copy.deepcopy(original, memo)
    if own_layers == 0:
        return copied, None
    layers = SharedLayers(original.backbone, shared)
    layers.replace_in(copied.backbone)
    return copied, layers


def shared_parameters(backbone: Backbone, own_layers: int) -> list[nn.Parameter]:
    """Return the parameters that are shared if a copy owns the last layers.

    Raises:
        ValueError: the backbone has fewer layers.
    """
    layers = backbone.layers()
    if not 0 <= own_layers <= len(layers):
        raise ValueError(f"own_layers is {own_layers}, but the backbone has {len(layers)} layers")
    if own_layers == 0:
        return list(backbone.parameters())
    return list(chain.from_iterable(layers[: len(layers) - own_layers]))


class SharedLayers:
    """Recorded outputs of a backbone's first layers in its last forward pass."""

    def __init__(self, original: Backbone, shared: list[nn.Parameter]):
        """
        Args:
            original: backbone that computes the layers.
            shared: parameters of these layers.
        """
        self._original = original
        self._names = _shared_modules(original, {id(parameter) for parameter in shared})
        self._outputs: dict[str, Any] = {}

    def replace_in(self, other: Backbone) -> None:
        """Make the same modules of a copy return the recorded outputs."""
        for name in self._names:
            other.get_submodule(name).forward = partial(self._output, name)  # type: ignore[method-assign]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the original's forward pass in this context, and discard the outputs at its end."""
        hooks = [
            self._original.get_submodule(name).register_forward_hook(partial(self._record, name))
            for name in self._names
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._outputs.clear()

    def _record(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._outputs[name] = output

    def _output(self, name: str, *inputs: Any, **options: Any) -> Any:
        return self._outputs[name]


def _shared_modules(backbone: Backbone, shared: set[int]) -> list[str]:
    """Return the names of the largest modules that are called and have shared parameters only."""
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: called.add(module)) for module in backbone.modules()
    ]
    side = TRACED_CELLS * backbone.size_divisor
    parameter = next(backbone.parameters())
    with torch.no_grad():
        backbone(torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype))
    for hook in hooks:
        hook.remove()

    def descend(module: nn.Module, name: str) -> Iterator[str]:
        parameters = list(module.parameters())
        if module in called and parameters and all(id(parameter) in shared for parameter in parameters):
            yield name
            return
        for child_name, child in module.named_children():
            yield from descend(child, f"{name}.{child_name}" if name else child_name)

    return list(descend(backbone, ""))
