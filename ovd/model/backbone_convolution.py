"""Convolutional backbones: timm models with average pooling (the tiny net, ConvNeXt, NFNet), and CLIP's own ResNets."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ovd.clip.convnext import fuse_convnext
from ovd.clip.folded_norm import fold_norms
from ovd.clip.frozen_convolution import FrozenWeights
from ovd.clip.pooling import use_halving_pools
from ovd.model.backbone import Backbone, BackboneOutput, disable_drop_paths, timm_layers
from ovd.precision import autocast, product_dtype

FINEST_STRIDE = 8
SIZE_DIVISOR = 32

Result = TypeVar("Result")


class TimmConvolutionBackbone(Backbone):
    """Convolutional timm backbone of an open_clip model, with average pooling.

    For the dense feature, every location of the last map passes through CLIP's pooling and projection as a 1 x 1 map of
    its own. Average pooling commutes with a linear projection, so without a norm between the two the mean over
    locations is exactly the pooled embedding. ConvNeXt has a LayerNorm there (and an MLP after it in the `_d` models),
    so its mean is only approximately the pooled embedding.
    """

    def __init__(self, visual: TimmModel):
        """
        Args:
            visual: the image side of an open_clip model, whose modules are changed in place (see
                `backbone_from_visual`).

        Raises:
            ValueError: the model pools by attention, or does not take images of any size.
        """
        super().__init__()
        if "pool" in visual.head._modules:
            raise ValueError("convolutional timm backbones that pool by attention are not supported")
        self.trunk = visual.trunk
        disable_drop_paths(self.trunk)
        fold_norms(self.trunk)
        fuse_convnext(self.trunk)
        self.projection = visual.head
        stages = [
            (index, info["num_chs"], info["reduction"])
            for index, info in enumerate(self.trunk.feature_info)
            if info["reduction"] >= FINEST_STRIDE
        ]
        self.stage_indices = [index for index, _, _ in stages]
        self.channels = tuple(channels for _, channels, _ in stages)
        self.strides = tuple(stride for _, _, stride in stages)
        self.size_divisor = SIZE_DIVISOR
        self.eval()
        self._check_free_size()

    @torch.no_grad()
    def _check_free_size(self) -> None:
        """Check with a small image that the features have the expected shapes, since timm does not guarantee them."""
        height, width = 2 * SIZE_DIVISOR, 3 * SIZE_DIVISOR
        name, weight = type(self.trunk).__name__, next(self.trunk.parameters())
        try:
            output = self(torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype))
            found = [feature.shape[1:] for feature in output.features]
            projected = self.project_locations(output.last).shape[2:]
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"{name} is not a supported backbone: an image of {height} x {width} px fails: {error}"
            ) from None
        wanted = [
            (channels, height // stride, width // stride)
            for channels, stride in zip(self.channels, self.strides, strict=True)
        ]
        if [tuple(shape) for shape in found] != wanted or projected != output.last.shape[2:]:
            raise ValueError(f"{name} is not a supported backbone: its features have the shapes {found}, not {wanted}")

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> BackboneOutput:
        compute = partial(self.trunk.forward_intermediates, indices=self.stage_indices)
        last, features = self._exact_if_narrow(compute, images)
        return BackboneOutput(tuple(features), last)

    def _exact_if_narrow(
        self, compute: Callable[[Float[Tensor, "B 3 H W"]], Result], images: Float[Tensor, "B 3 H W"]
    ) -> Result:
        """Apply a function to images, in float32 if the last map has a single column.

        oneDNN may compute such a map wrongly in bfloat16 (clip/narrow_maps.py).
        """
        is_bf16 = images.device.type == "cpu" and product_dtype(images) == torch.bfloat16
        if not is_bf16 or images.shape[-1] >= 2 * self.strides[-1]:
            return compute(images)
        with autocast(images.device, False):
            return compute(images.float())

    def project_locations(self, last: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        batch, channels, height, width = last.shape
        locations = last.permute(0, 2, 3, 1).reshape(batch * height * width, channels, 1, 1)
        projected = self.projection(self.trunk.forward_head(locations))
        return projected.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return self._exact_if_narrow(self._pool, images)

    def _pool(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return self.projection(self.trunk.forward_head(self.trunk.forward_features(images)))

    def layers(self) -> list[list[nn.Parameter]]:
        return timm_layers(self.trunk, without=self.projection_parameters())

    def projection_parameters(self) -> list[nn.Parameter]:
        head = getattr(self.trunk, "head", None)  # ConvNeXt's norm after pooling
        return [*self.projection.parameters(), *(head.parameters() if isinstance(head, nn.Module) else ())]

    def checkpoint_activations(self) -> None:
        if not hasattr(self.trunk, "set_grad_checkpointing"):
            raise ValueError(
                f"{type(self.trunk).__name__} cannot recompute its activations; set detector.recompute=false"
            )
        self.trunk.set_grad_checkpointing(True)
        super().checkpoint_activations()

    def set_drop_path(self, rate: float) -> None:
        blocks = [
            module for module in self.trunk.modules() if isinstance(getattr(module, "drop_path", None), nn.Module)
        ]
        if not blocks:
            raise ValueError(
                f"{type(self.trunk).__name__} has no blocks with stochastic depth; set detector.drop_path=0"
            )
        for number, block in enumerate(blocks):
            block.drop_path = DropPath(rate * number / max(1, len(blocks) - 1))


class ClipResNetBackbone(Backbone):
    """ResNet of CLIP (arXiv:2103.00020), whose last map is pooled by attention.

    The dense feature is the attention pool's value and output projection at each location, without positions, which is
    the result of attention to that location alone.
    """

    def __init__(self, visual: ModifiedResNet):
        super().__init__()
        self.visual = visual
        fold_norms(visual)
        use_halving_pools(visual)
        self.channels = tuple(stage[-1].bn3.num_features for stage in (visual.layer2, visual.layer3, visual.layer4))
        self.strides = (8, 16, 32)
        self.size_divisor = SIZE_DIVISOR
        for unused in self.unused_parameters():
            unused.requires_grad_(False)
        self.frozen_projections = FrozenWeights(), FrozenWeights()
        self.eval()

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> BackboneOutput:
        features = self._features(images)
        return BackboneOutput(tuple(features), features[-1])

    def project_locations(self, last: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        pool, (value_projection, output_projection) = self.visual.attnpool, self.frozen_projections
        values = value_projection.project(pool.v_proj, last.permute(0, 2, 3, 1))
        return output_projection.project(pool.c_proj, values).permute(0, 3, 1, 2)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        last, pool = self._features(images)[-1], self.visual.attnpool
        positions = resample_abs_pos_embed(pool.positional_embedding[None], list(last.shape[2:]))[0]
        tokens = last.flatten(2).permute(2, 0, 1)
        tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens]) + positions[:, None]
        heads = (tokens.shape[1] * pool.num_heads, tokens.shape[2] // pool.num_heads)  # batch x heads, width of a head
        query, key, value = (
            projection(rows).reshape(len(rows), *heads).transpose(0, 1)
            for projection, rows in ((pool.q_proj, tokens[:1]), (pool.k_proj, tokens), (pool.v_proj, tokens))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return pool.c_proj(attended.transpose(0, 1).reshape(tokens.shape[1:]))

    def layers(self) -> list[list[nn.Parameter]]:
        stem = [p for name, p in self.visual.named_parameters() if not name.startswith(("layer", "attnpool"))]
        return [stem, *(list(block.parameters()) for stage in self._stages() for block in stage)]

    def projection_parameters(self) -> list[nn.Parameter]:
        return list(self.visual.attnpool.parameters())

    def unused_parameters(self) -> list[nn.Parameter]:
        pool = self.visual.attnpool
        return [pool.positional_embedding, *pool.q_proj.parameters(), *pool.k_proj.parameters()]

    def set_drop_path(self, rate: float) -> None:
        raise ValueError("CLIP's ResNets have no stochastic depth; set detector.drop_path=0")

    def _stages(self) -> list[nn.Sequential]:
        return [self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4]

    def _features(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B ..."]]:
        """Compute the feature maps of strides 8, 16 and 32."""
        x, features = images, []
        for number in (1, 2, 3):  # as in `visual.stem`, whose norm and ReLU are folded into the convolution
            x = getattr(self.visual, f"bn{number}")(getattr(self.visual, f"conv{number}")(x))
        x = self.visual.avgpool(x)
        for stage in self._stages():
            recompute = self.recomputes and torch.is_grad_enabled()
            x = checkpoint(stage, x, use_reentrant=False) if recompute else stage(x)
            features.append(x)
        return features[1:]
