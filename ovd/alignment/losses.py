"""Losses between a dense feature at boxes and CLIP's embeddings of their crops.

The idea is that of CLIPSelf (arXiv:2310.01403): CLIP's embedding of a crop is more precise than its own dense feature
at the same place, so the embedding can teach the dense feature without labels.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ovd.model.backbone import Backbone


class DenseFeature(nn.Module):
    """A module whose forward returns a backbone's dense feature, as data parallelism needs it."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        return self.backbone.dense(pixels)


def dense_at_boxes(
    dense: Float[Tensor, "B D h w"], boxes: Sequence[Float[Tensor, "_ 4"]], stride: int
) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:
    """Compute a dense feature's unit embeddings of every box: bilinear at its center, and the mean over it.

    Both are computed from the unnormalized feature and then normalized, as for a detector's shortcuts
    (`resample_dense`).
    """
    centers = [((of_image[:, :2] + of_image[:, 2:]) / 2).repeat(1, 2) for of_image in boxes]
    dense = dense.float()
    # A box without size gives one sample, at the center.
    points = roi_align(dense, centers, 1, spatial_scale=1 / stride, sampling_ratio=1, aligned=True)
    means = roi_align(dense, list(boxes), 1, spatial_scale=1 / stride, sampling_ratio=-1, aligned=True)
    return F.normalize(points[:, :, 0, 0], dim=1), F.normalize(means[:, :, 0, 0], dim=1)


def distillation_losses(
    dense: Float[Tensor, "B D h w"],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    targets: Float[Tensor, "M _"],
    stride: int,
) -> dict[str, Float[Tensor, ""]]:
    """Sum 1 - cosine over the boxes, between the targets and the dense feature at box centers and over boxes.

    Args:
        targets: unit embeddings of the M boxes' crops.
    """
    if len(targets) == 0:
        nothing = 0.0 * dense.float().sum()  # so that every parameter has a gradient on every rank
        return {"point": nothing, "box": nothing}
    points, means = dense_at_boxes(dense, boxes, stride)
    return {"point": (1 - (points * targets).sum(dim=1)).sum(), "box": (1 - (means * targets).sum(dim=1)).sum()}
