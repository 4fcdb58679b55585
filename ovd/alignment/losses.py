"""What a dense feature says of boxes, and how far that is from what CLIP says of their crops.

The idea is that of CLIPSelf (arXiv:2310.01403): a CLIP model sees a crop better than its own dense feature sees the
place, so the former can teach the latter, without labels.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ovd.model.backbone import Backbone


class DenseFeature(nn.Module):
    """A backbone whose forward is its dense feature, as data parallelism needs it."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        return self.backbone.dense(pixels)


def dense_at_boxes(
    dense: Float[Tensor, "B D h w"], boxes: Sequence[Float[Tensor, "_ 4"]], stride: int
) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:
    """A dense feature's unit embeddings of every box: bilinear at its centre, and the mean over it.

    Both are taken from the feature as it is and then normalized, as a detector's shortcuts do on their levels
    (`resample_dense`).
    """
    centers = [((of_image[:, :2] + of_image[:, 2:]) / 2).repeat(1, 2) for of_image in boxes]
    dense = dense.float()
    # A box of no size has one sample, at its place.
    points = roi_align(dense, centers, 1, spatial_scale=1 / stride, sampling_ratio=1, aligned=True)
    means = roi_align(dense, list(boxes), 1, spatial_scale=1 / stride, sampling_ratio=-1, aligned=True)
    return F.normalize(points[:, :, 0, 0], dim=1), F.normalize(means[:, :, 0, 0], dim=1)


def distillation_losses(
    dense: Float[Tensor, "B D h w"],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    targets: Float[Tensor, "M _"],
    stride: int,
) -> dict[str, Float[Tensor, ""]]:
    """Sums over the boxes of 1 - cosine, between the targets and the dense feature at the centre and over the box.

    Args:
        targets: unit embeddings of the M boxes' crops.
    """
    if len(targets) == 0:
        nothing = 0.0 * dense.float().sum()  # so that every parameter has a gradient on every rank
        return {"point": nothing, "box": nothing}
    points, means = dense_at_boxes(dense, boxes, stride)
    return {"point": (1 - (points * targets).sum(dim=1)).sum(), "box": (1 - (means * targets).sum(dim=1)).sum()}
