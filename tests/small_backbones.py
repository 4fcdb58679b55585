"""Miniatures of every family of backbones with random weights, and a check of one property that they share."""

import copy
from typing import Any

import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva
from torch import Tensor, nn

from ovd.model.backbone_convolution import TimmConvolutionBackbone
from ovd.model.backbone_families import backbone_from_visual

DIM = 64
"""Dimension of the text space, for the families that let one choose it."""

TIMM: dict[str, Any] = {"timm_model_pretrained": False, "timm_drop_path": 0.1}
"""Settings of timm models, with stochastic depth as in many of open_clip's configs, which must have no effect."""
FAMILIES: dict[str, dict[str, Any]] = {
    "clip_resnet": {"layers": (1, 2, 1, 1), "width": 16, "head_width": 32, "image_size": 128},
    "convnext": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": 64, **TIMM},
    "convnext_d": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "mlp", "image_size": 64, **TIMM},
    "nfnet": {"timm_model_name": "nfnet_l0", "timm_pool": "", "timm_proj": "linear", "image_size": 64, **TIMM},
    "vit": {"layers": 3, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 96},
    "vit_14": {"layers": 3, "width": 64, "head_width": 32, "patch_size": 14, "image_size": 84},
    "siglip": {
        "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224,
        **TIMM,
    },
    "eva01": {
        "timm_model_name": "small_eva01", "timm_pool": "token", "timm_proj": None, "image_size": 96, **TIMM,
    },
    "eva02": {
        "timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "token", "timm_proj": None, "image_size": 224,
        **TIMM,
    },
}  # fmt: skip
AVERAGE_POOLING = ["nfnet"]
"""Families with average pooling followed by a linear projection only; ConvNeXt has a norm after the pooling."""

default_cfgs = generate_default_cfgs({"small_eva01": {"input_size": (3, 96, 96), "num_classes": 0}})


@register_model
def small_eva01(pretrained: bool = False, **options: Any) -> Eva:
    """Build an EVA01 of three narrow blocks (timm's own is giant); unlike EVA02, it has no rotary embeddings."""
    sizes: dict[str, Any] = {"img_size": 96, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 2}
    return build_model_with_cfg(Eva, "small_eva01", pretrained, **sizes, **options)


# Variants of one family are much alike, so these, and the slow families, are tested by `make test-all` only.
SLOW = {"convnext_d", "nfnet", "vit_14"}


def random_visual(family: str) -> Any:
    """Build the image side of an open_clip model, with weights that give every part an effect."""
    torch.manual_seed(0)
    return randomize(_build_vision_tower(DIM, CLIPVisionCfg(**FAMILIES[family])).eval())


def randomize(model: Any) -> Any:
    """Draw new values for weights and statistics that a library initializes at or near zero or one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean, std=0.2)
    # timm initializes some of these at or near zero, which would hide the layers they belong to.
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith(("latent", "pos_embed", "cls_token", "gain")):
            nn.init.normal_(parameter, mean=float(name.endswith(("weight", "gain"))), std=0.2)
        elif parameter.std() < 0.01:
            nn.init.normal_(parameter, std=0.05)
    return model


@torch.no_grad()
def dense_and_pooled_of_a_constant_map(visual: Any, family: str) -> tuple[Tensor, Tensor]:
    """Return dense (B x D x h x w) and pooled (B x D) features of a last map with equal locations.

    The pooled features are the library's own and serve as the reference. Positions of an attention pool are set to
    zero, and the class token is set like the patches.
    """
    model = copy.deepcopy(visual)
    if family == "clip_resnet":
        nn.init.zeros_(model.attnpool.positional_embedding)
    backbone = backbone_from_visual(model)
    side = FAMILIES[family]["image_size"] // backbone.strides[-1]
    generator = torch.Generator().manual_seed(5)
    channels = model.trunk.num_features if isinstance(backbone, TimmConvolutionBackbone) else backbone.channels[-1]
    constant = torch.randn(2, channels, 1, 1, generator=generator)
    with torch.no_grad():
        dense = backbone.project_locations(constant.expand(-1, -1, side, side))
        tokens = constant.flatten(1)[:, None].expand(-1, side**2 + 1, -1)
        if family == "clip_resnet":
            pooled = model.attnpool(constant.expand(-1, -1, side, side))
        elif family.startswith("vit"):
            pooled = model._pool(model.transformer.resblocks[-1](tokens))[0] @ model.proj
        elif family == "siglip":
            pooled = model.trunk.forward_head(model.trunk.norm(tokens[:, 1:]))
        elif family.startswith("eva"):
            rope = None if model.trunk.rope is None else model.trunk.rope.get_embed((side, side))
            pooled = model.trunk.forward_head(model.trunk.norm(model.trunk.blocks[-1](tokens, rope=rope)))
        else:
            pooled = model.head(model.trunk.forward_head(constant.expand(-1, -1, side, side)))
    return dense, pooled
