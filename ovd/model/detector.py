"""The detector: backbone, pyramid, head, and the shortcuts that keep every point's embedding in the text space."""

from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ovd.model.backbone import Backbone
from ovd.model.fcos_head import FcosHead, make_points
from ovd.model.fpn import FeaturePyramid, SimplePyramid
from ovd.model.gates import HeadShortcut, PyramidShortcut, resample_dense
from ovd.model.t_head import TaskAlignedHead
from ovd.structures import Points, Predictions

Place = Literal["pyramid", "head"]

MAX_RECOMPILATIONS = 64


def unit_projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution that gives about unit length from group-normalised input."""
    projection = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.normal_(projection.weight, std=(in_channels * out_channels) ** -0.5)
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    return projection


class Detector(nn.Module):
    """Images to an embedding, a box and a quality at every point of P3..P7.

    What the embeddings are compared with is not part of the detector: class logits are
    `scale * cosine(embedding, text) + bias` (similarity.py) for whatever text rows one brings. `scale` starts at
    CLIP's logit scale; `bias` is solved for on the first training batch.

    With `gated` shortcuts a fresh detector's embedding is the dense CLIP feature, exactly. Without shortcuts it is a
    projection of the class tower, as in an ordinary detector.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        text_dim: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        logit_scale: float,
        channels: int,
        num_convs: int,
        shortcuts: frozenset[Place],
        per_channel_gates: bool,
        filter_size: int,
        keeps_clip: bool = False,
        task_aligned: bool = False,
    ):
        """
        Args:
            backbone: gives the features and the dense feature.
            text_dim: D, of the text rows and of the backbone's dense feature.
            mean, std: normalisation of the backbone's input, RGB in 0..1.
            logit_scale: CLIP's factor from cosine to logit.
            channels: width of pyramid and head, a multiple of 32.
            num_convs: convolutions in each backbone of the head; of TOOD's head, in all.
            shortcuts: where the learned path joins the dense feature; nowhere: an ordinary detector.
            per_channel_gates: one gate per channel of the text space, or one for all.
            filter_size: side of the square of points that the head's shortcut filter looks at; odd.
            task_aligned: the head is TOOD's.
            keeps_clip: in eval mode, predict the dense feature beside the embeddings, for score ensembling.
        """
        super().__init__()
        self.backbone = backbone
        self.pyramid = (
            FeaturePyramid(backbone.channels, backbone.strides, channels)
            if len(backbone.strides) > 1
            else SimplePyramid(backbone.channels[0], backbone.strides[0], channels)
        )
        self.strides = self.pyramid.strides
        kind = TaskAlignedHead if task_aligned else FcosHead
        self.head = kind(channels, num_convs, self.strides)
        self.gated = bool(shortcuts)
        self.keeps_clip = keeps_clip
        self.pyramid_shortcut, self.head_shortcut = None, None
        if "pyramid" in shortcuts:
            self.pyramid_shortcut = PyramidShortcut(
                len(self.strides), channels, text_dim, per_channel=per_channel_gates
            )
        if "head" in shortcuts:
            self.head_shortcut = HeadShortcut(
                channels, text_dim, per_channel=per_channel_gates, filter_size=filter_size
            )
        elif self.gated:
            self.head.class_tower.requires_grad_(False)  # nothing is made of it
        if not self.gated:
            self.projection = unit_projection(channels, text_dim)
            for parameter in backbone.projection_parameters():
                parameter.requires_grad_(False)  # nothing is learned through a feature that is not used
        self.log_scale = nn.Parameter(torch.tensor(logit_scale).log())
        self.threshold = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def size_divisor(self) -> int:
        """Image sides must be padded to multiples of it."""
        return self.backbone.size_divisor

    @property
    def scale(self) -> Float[Tensor, ""]:
        """Factor from cosine to logit."""
        return self.log_scale.exp()

    @property
    def bias(self) -> Float[Tensor, ""]:
        """Added to the scaled cosine. Learned as a threshold on the cosine, logit = scale * (cosine - threshold), so
        that the scale can grow without moving every logit: where embeddings share a direction, as CLIP's do, all
        cosines are high and only their differences tell classes apart."""
        return -self.scale * self.threshold

    def set_bias(self, bias: float) -> None:
        """Choose the threshold that gives this bias at the present scale."""
        with torch.no_grad():
            self.threshold.copy_(-bias / self.scale)

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Predictions:
        """RGB images, 0..255; sides in multiples of `size_divisor`."""
        divisor = self.size_divisor
        if images.shape[-2] % divisor or images.shape[-1] % divisor:
            raise ValueError(f"image sides {tuple(images.shape[-2:])} are not multiples of {divisor}; pad them")
        pixels = (images.float() - self.mean) / self.std
        if self.head.distances.weight.is_contiguous(memory_format=torch.channels_last):
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        backbone = self.backbone(pixels)
        pyramid = self.pyramid(backbone.features)
        class_features, boxes, quality = self.head(pyramid)
        if self.gated:
            levels = self._shortcuts(backbone.last, pyramid)
            if self.pyramid_shortcut is not None:
                levels = self.pyramid_shortcut(levels, pyramid)
            if self.head_shortcut is not None:
                levels = self.head_shortcut(levels, class_features)
        else:
            levels = [self.projection(features) for features in class_features]
        clip = None
        if self.keeps_clip and not self.training:
            clip = _concatenate(self._shortcuts(backbone.last, pyramid))
        return Predictions(_concatenate(levels), boxes, quality, clip)

    def _shortcuts(
        self, last: Float[Tensor, "B K h w"], pyramid: list[Float[Tensor, "B C ..."]]
    ) -> list[Float[Tensor, "B D ..."]]:
        """The dense feature at every level."""
        dense = self.backbone.project_locations(last)
        return [
            resample_dense(dense, self.backbone.strides[-1], (level.shape[2], level.shape[3]), stride)
            for level, stride in zip(pyramid, self.strides, strict=True)
        ]

    def compile_learned_path(self) -> None:
        """Run pyramid, head and shortcuts compiled from now on (not in copies); the backbone stays as it is.

        The first shape of a batch is compiled in seconds, the second as one for all sizes in minutes.
        """
        # The parts count together as one function, which torch compiles eight times at most unless told otherwise.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_RECOMPILATIONS)
        for part in (self.pyramid, self.head, self.pyramid_shortcut, self.head_shortcut):
            if part is not None:
                part.compile()

    def points(self, images: UInt8[Tensor, "B 3 H W"]) -> Points:
        """Where the predictions for these images stand."""
        return make_points((images.shape[-2], images.shape[-1]), self.strides, images.device)


def _concatenate(levels: list[Float[Tensor, "B D ..."]]) -> Float[Tensor, "B P D"]:
    return torch.cat([level.float().flatten(2).transpose(1, 2) for level in levels], dim=1)
