"""Group norm (Wu and He 2018), which does not depend on the batch: batches of detection data are small."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ovd import kernels

CHANNELS_PER_GROUP = 8


class GroupNorm(nn.GroupNorm):
    """Group norm, with a ReLU behind it if wanted; on a GPU one kernel that keeps channels last, and the dtype."""

    def __init__(self, channels: int, *, relu: bool = False):
        super().__init__(channels // CHANNELS_PER_GROUP, channels)
        self.relu = relu

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        is_power = x.shape[1] & (x.shape[1] - 1) == 0
        if is_power and kernels.applies_to_map(x):
            from ovd.kernels.group_norm import GroupNormRelu

            return GroupNormRelu.apply(x, self.weight, self.bias, self.num_groups, self.eps, self.relu)
        normal = super().forward(x)
        return F.relu(normal) if self.relu else normal
