"""Training of a detector through CUDA graphs: one launch for its forward pass and one for its backward pass.

Without graphs, a fast GPU spends more than half of the time waiting for the thousands of kernel launches of a step.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ovd.distributed import world_size
from ovd.model.detector import Detector
from ovd.precision import Compute
from ovd.structures import Predictions

MAX_SHAPES = 8
"""Number of batch shapes that get a graph, each of which keeps its gradients in memory; others run without a graph."""


def can_be_graphed(detector: Detector, *, accumulate: int) -> bool:
    """Whether graphs can be used: on a CUDA device, in one process, for batches in one part, without recomputation.

    Graphs keep the gradients in buffers of their own, which the next part of a batch would overwrite.
    """
    is_single = world_size() == 1 and accumulate == 1
    return detector.device.type == "cuda" and is_single and not detector.backbone.recomputes


class GraphedDetector(nn.Module):
    """A detector in train mode that runs through CUDA graphs; each batch shape is captured when it first occurs."""

    def __init__(self, detector: Detector, compute: Compute):
        """
        Args:
            detector: must stay on its device, and keep the same parameters trainable.
        """
        super().__init__()
        self._plain = _TupleOutputDetector(detector, compute)
        self._graphs: dict[torch.Size, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Predictions:
        """Compute the detector's predictions, which are valid until the next call."""
        graph = self._graphs.get(images.shape)
        with torch.autocast(images.device.type, enabled=False):  # `_TupleOutputDetector` enters its own autocast
            if graph is None and len(self._graphs) < MAX_SHAPES:
                graph = self._graphs[images.shape] = self._capture(images)
            embeddings, boxes, quality = (graph or self._plain)(images)
        return Predictions(embeddings, boxes, quality)

    def _capture(self, images: UInt8[Tensor, "B 3 H W"]) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
        # Gradients are accumulated on the capture stream, and torch warns in every backward pass that it waits for it.
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):  # since torch 2.11
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        plain = _TupleOutputDetector(self._plain.detector, self._plain.compute)
        options = {"allow_unused_input": True, "pool": self._pool}
        # The warm-up passes draw random numbers; those of the step must not depend on whether it captures.
        state = torch.cuda.get_rng_state(images.device)
        graph = torch.cuda.make_graphed_callables(plain, (images.clone(),), **options)  # type: ignore[call-overload]
        torch.cuda.set_rng_state(state, images.device)
        return graph


class _TupleOutputDetector(nn.Module):
    """A detector whose output is a tuple of tensors."""

    def __init__(self, detector: Detector, compute: Compute):
        super().__init__()
        self.detector, self.compute = detector, compute

    def forward(
        self, images: UInt8[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B P 4"], Float[Tensor, "B P"]]:
        # The graph must cast the weights in every step, so it may not read casts that autocast has cached.
        torch.clear_autocast_cache()
        with self.compute.autocast():
            predictions = self.detector(images)
        torch.clear_autocast_cache()
        return predictions.embeddings, predictions.boxes, predictions.quality
