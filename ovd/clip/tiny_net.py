"""The tiny CLIP's backbone: a small residual net whose last stride is 16, registered with timm.

timm's own backbones end at stride 32, at which a 16 px object is half a cell wide, and open_clip does not pass
`output_stride` on. After importing this module, open_clip's model configs can use `timm_model_name: ovd_tiny_net`.
"""

import torch
from jaxtyping import Float
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

WIDTHS = (64, 128, 256)
DEPTHS = (1, 2, 2)


def conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Build a 3 x 3 convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut around them (He et al. 2016, basic block)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = conv_norm(channels, channels)
        self.second = conv_norm(channels, channels)
        nn.init.zeros_(self.second.get_parameter("1.weight"))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class TinyNet(nn.Module):
    """A stem at stride 4, then three stages at strides 4, 8 and 16, with timm's model interface."""

    def __init__(self, in_chans: int = 3, num_classes: int = 0, global_pool: str = "avg"):
        super().__init__()
        self.stem = nn.Sequential(conv_norm(in_chans, 32, 2), nn.ReLU(), conv_norm(32, WIDTHS[0], 2), nn.ReLU())
        stages, in_channels = [], WIDTHS[0]
        for index, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            down = [conv_norm(in_channels, width, 2), nn.ReLU()] if index else []
            stages.append(nn.Sequential(*down, *(ResidualBlock(width) for _ in range(depth))))
            in_channels = width
        self.stages = nn.ModuleList(stages)
        self.num_features = WIDTHS[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**index, "module": f"stages.{index}"}
            for index, width in enumerate(WIDTHS)
        ]
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        if num_classes or global_pool != "avg":
            raise ValueError(f"the tiny net has average pooling and no classifier, not {global_pool=}, {num_classes=}")
        self.num_classes = num_classes

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns that group parameters into layers: the stem, then the stages or their parts."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def forward_intermediates(
        self,
        x: Float[Tensor, "B 3 H W"],
        indices: list[int] | int | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        """Return the last map and the stages' maps at these indices.

        The signature is timm's; `norm`, `stop_early` and `output_fmt` have no effect here.
        """
        wanted = range(len(self.stages)) if indices is None else indices
        if isinstance(wanted, int):
            wanted = range(len(self.stages) - wanted, len(self.stages))
        x = self.stem(x)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in wanted:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        return self.forward_intermediates(x, [])[0]

    def forward_head(self, x: Float[Tensor, "B C h w"], pre_logits: bool = False) -> Float[Tensor, "B C"]:
        return x.mean((2, 3))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {"ovd_tiny_net.untrained": {"input_size": (3, 112, 112), "pool_size": (7, 7), "num_classes": 0}}
)


@register_model
def ovd_tiny_net(pretrained: bool = False, **kwargs) -> TinyNet:
    """Build the tiny net: 3.5 M parameters, 0.24 GMAC at 96 px."""
    return build_model_with_cfg(TinyNet, "ovd_tiny_net", pretrained, **kwargs)
