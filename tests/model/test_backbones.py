"""Every family of backbones against open_clip's own modules, at random weights.

The reference is the library's own model, with its image size set in the library's own way. The dense feature is
computed from its weights by the formula of the family, from the tokens or the map that a hook catches.
"""

import copy
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, _build_vision_tower, resize_pos_embed
from random_images import normal_images
from small_backbones import (
    AVERAGE_POOLING,
    DIM,
    FAMILIES,
    SLOW,
    TIMM,
    dense_and_pooled_of_a_constant_map,
    random_visual,
    randomize,
)
from small_detector import detector_around
from timm.layers import DropPath, drop_path
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ovd.build.learner import check_deterministic
from ovd.model.backbone_convolution import TimmConvolutionBackbone
from ovd.model.backbone_families import backbone_from_visual
from ovd.model.backbone_transformer import TransformerBackbone
from ovd.model.resample import resample_dense


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILIES]
)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def visual(family) -> Any:
    return random_visual(family)


def sizes(family: str) -> list[tuple[int, int]]:
    side = FAMILIES[family]["image_size"]
    step = 28 if family == "vit_14" else 32
    return [(side, side), (2 * step, 3 * step)]


def resized(visual: Any, family: str, size: tuple[int, int]) -> Any:
    """Put the same weights into a model for this image size, built by the library."""
    if family.startswith("vit"):
        text = CLIPTextCfg(layers=1, width=64, heads=1, vocab_size=10)
        model = CLIP(DIM, CLIPVisionCfg(**{**FAMILIES[family], "image_size": size}), text).eval()
        state = {f"visual.{name}": value for name, value in visual.state_dict().items()}
        resize_pos_embed(state, model)
        model.visual.load_state_dict({name.removeprefix("visual."): value for name, value in state.items()})
        return model.visual
    model = copy.deepcopy(visual)
    if family in ("siglip", "eva01", "eva02"):
        model.set_input_size(size)
    return model


def caught(module: nn.Module, model: Any, images: Tensor) -> Tensor:
    """Return the input of a module when the model runs."""
    inputs: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])):
        model(images)
    return inputs[0]


@torch.no_grad()
def dense_reference(visual: Any, family: str, images: Tensor) -> Tensor:
    model = resized(visual, family, (images.shape[2], images.shape[3]))
    grid = [side // (14 if family == "vit_14" else 16) for side in images.shape[2:]]

    def as_map(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, grid)

    if family == "clip_resnet":
        last, pool = model.layer4(model.layer3(model.layer2(model.layer1(model.stem(images))))), model.attnpool
        pool.positional_embedding = nn.Parameter(torch.zeros(2, pool.c_proj.in_features))
        return over_locations(pool, last)
    if family.startswith("vit"):
        block = model.transformer.resblocks[-1]
        tokens = caught(block, model, images)[:, 1:]
        _, _, value_weight = block.attn.in_proj_weight.chunk(3)
        _, _, value_bias = block.attn.in_proj_bias.chunk(3)
        tokens = tokens + block.attn.out_proj(F.linear(block.ln_1(tokens), value_weight, value_bias))
        tokens = tokens + block.mlp(block.ln_2(tokens))
        return as_map(model.ln_post(tokens) @ model.proj)
    trunk = model.trunk
    if family == "siglip":
        tokens, pool = caught(trunk.attn_pool, model, images), trunk.attn_pool
        values = pool.proj(pool.kv(tokens).chunk(2, dim=-1)[1])
        return as_map(values + pool.mlp(pool.norm(values)))
    if family.startswith("eva"):
        block = trunk.blocks[-1]
        tokens = caught(block, model, images)[:, 1:]
        attention, inside = block.attn, block.norm1(tokens)
        if attention.v_proj is not None:
            values = attention.v_proj(inside)
        else:
            values = F.linear(inside, attention.qkv.weight.chunk(3)[2], attention.v_bias)
        tokens = tokens + attention.proj(attention.norm(values))
        tokens = tokens + block.mlp(block.norm2(tokens))
        return as_map(trunk.head(trunk.norm(tokens)))
    last = trunk.forward_features(images)
    return over_locations(lambda one: model.head(trunk.forward_head(one)), last)


def over_locations(pool, last: Tensor) -> Tensor:
    """Apply CLIP's own pooling to every location as a map of a single cell."""
    rows = [
        torch.stack([pool(last[:, :, y : y + 1, x : x + 1]) for x in range(last.shape[3])], -1)
        for y in range(last.shape[2])
    ]
    return torch.stack(rows, 2)


def test_dense_feature_is_the_families_formula_on_the_librarys_own_features(visual, family):
    backbone = backbone_from_visual(copy.deepcopy(visual))
    for size in sizes(family):
        images = normal_images(*size)
        with torch.no_grad():
            dense = backbone.dense(images)
        expected = dense_reference(visual, family, images)
        assert dense.shape == expected.shape
        torch.testing.assert_close(dense, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_fresh_detector_says_at_every_point_what_the_dense_feature_says(visual, family):
    """A fresh detector's embeddings are the dense feature at every point, in training mode, too; resampling has an
    independent reference in test_alignment.py."""
    torch.manual_seed(1)
    text_dim = dense_reference(visual, family, normal_images(*sizes(family)[0])).shape[1]
    detector = detector_around(
        backbone_from_visual(copy.deepcopy(visual)), "pyramid", "head",
        text_dim=text_dim, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    ).train()  # fmt: skip
    for sides in sizes(family):
        height, width = (-(-side // detector.size_divisor) * detector.size_divisor for side in sides)
        generator = torch.Generator().manual_seed(4)
        images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
        dense = dense_reference(visual, family, (images / 255 - 0.5) / 0.25)
        levels = [
            resample_dense(dense, detector.backbone.strides[-1], (-(-height // s), -(-width // s)), s).flatten(2)
            for s in detector.strides
        ]
        with torch.no_grad():
            embeddings = detector(images).embeddings
        assert len(detector.strides) == 5
        difference = (embeddings - torch.cat(levels, 2).transpose(1, 2)).abs().max()
        assert difference < 1e-5


def test_pooling_the_whole_map_gives_the_librarys_embedding(visual, family):
    backbone = backbone_from_visual(copy.deepcopy(visual))
    for size in sizes(family):
        if family == "clip_resnet" and size[0] != size[1]:
            continue  # the library runs CLIP's ResNets at their native size only
        images = normal_images(*size)
        with torch.no_grad():
            expected = resized(visual, family, size)(images)
            pooled = backbone.encode(images)
        torch.testing.assert_close(pooled, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


def test_mean_of_the_dense_feature_is_the_pooled_embedding_where_clip_takes_the_mean(visual, family):
    backbone = backbone_from_visual(copy.deepcopy(visual))
    images = normal_images(*sizes(family)[1])
    with torch.no_grad():
        mean, pooled = backbone.dense(images).mean((2, 3)), backbone.encode(images)
    if family in AVERAGE_POOLING:
        torch.testing.assert_close(mean, pooled, atol=1e-5, rtol=1e-4)
    else:
        assert (mean - pooled).abs().max() > 1e-3


def test_spatially_constant_last_map_gives_the_pooled_embedding_everywhere(visual, family):
    """For a spatially constant last map, the dense feature is the pooled embedding everywhere, with an attention pool's
    positions at zero and the class token like the patches."""
    dense, pooled = dense_and_pooled_of_a_constant_map(visual, family)
    torch.testing.assert_close(dense, pooled[:, :, None, None].expand_as(dense), atol=1e-5, rtol=1e-4)


def test_one_image_equals_the_same_image_in_a_batch(visual, family):
    backbone = backbone_from_visual(copy.deepcopy(visual))
    images = normal_images(*sizes(family)[1], batch=2)
    with torch.no_grad():
        together, alone = backbone(images), backbone(images[1:])
        dense = [backbone.project_locations(output.last) for output in (together, alone)]
    torch.testing.assert_close(dense[0][1:], dense[1], atol=1e-5, rtol=1e-3)
    for one, other in zip(together.features, alone.features, strict=True):
        torch.testing.assert_close(one[1:], other, atol=1e-4, rtol=1e-3)


def test_layers_and_projection_hold_every_parameter_once(visual, family):
    backbone = backbone_from_visual(copy.deepcopy(visual))
    layers, projection = backbone.layers(), backbone.projection_parameters()
    listed = [id(parameter) for layer in (*layers, projection) for parameter in layer]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(parameter) for parameter in backbone.parameters()}
    assert len(layers) >= 3
    assert all(layers)


def test_recomputed_activations_give_the_same_gradients(visual, family):
    images, gradients = normal_images(*sizes(family)[1]), []
    for recomputes in (False, True):
        backbone = backbone_from_visual(copy.deepcopy(visual))
        if recomputes:
            backbone.checkpoint_activations()
        output = backbone(images)
        outputs = (backbone.project_locations(output.last), *output.features)
        torch.stack([values.square().mean() for values in outputs]).sum().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        scale = float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4 * scale, rtol=1e-3, msg=name)


class Operations(TorchDispatchMode):
    """A dispatch mode that records the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_same_bits_on_a_gpu_are_refused_where_a_resampling_has_a_gradient(visual, family):
    backbone, resamples = backbone_from_visual(copy.deepcopy(visual)), []
    for _ in range(2):
        with Operations() as found:
            backbone.dense(normal_images(*sizes(family)[1])).sum().backward()
        resamples.append(any("upsample" in name and "backward" in name for name in found.names))
        check_deterministic(backbone, torch.device("cpu"))
        if resamples[-1]:
            with pytest.raises(ValueError, match="frozen_layers=1"):
                check_deterministic(backbone, torch.device("cuda"))
        else:
            check_deterministic(backbone, torch.device("cuda"))
        for parameter in backbone.layers()[0]:  # as detector.frozen_layers freezes it
            parameter.requires_grad_(False)
    assert resamples == [isinstance(backbone, TransformerBackbone), False]


def test_the_librarys_own_forward_pass_gives_the_same_afterwards(visual, family):
    model, side = copy.deepcopy(visual), FAMILIES[family]["image_size"]
    images = normal_images(side, side)
    with torch.no_grad():
        before = model(images)
        backbone_from_visual(model)
        torch.testing.assert_close(model(images), before, atol=1e-5 * float(before.abs().max()), rtol=1e-4)


def test_training_mode_has_no_stochastic_depth_of_the_models_own_config(visual, family):
    backbone = backbone_from_visual(copy.deepcopy(visual))
    images = normal_images(*sizes(family)[1])
    with torch.no_grad():
        expected = backbone.eval().dense(images)
        assert torch.equal(backbone.train().dense(images), expected)


def test_stochastic_depth_has_the_rate_that_is_set():
    """Stochastic depth has the given rate: rates rise evenly, and every block of a transformer is dropped as a whole,
    once."""
    convolutional = backbone_from_visual(random_visual("convnext"))
    convolutional.set_drop_path(0.6)
    rates = [module.drop_prob for module in convolutional.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.6 * number / 11 for number in range(12)])

    images = normal_images(64, 96, batch=4)
    for family in ("vit", "eva01"):
        backbone = backbone_from_visual(random_visual(family))
        assert isinstance(backbone, TransformerBackbone)
        backbone.set_drop_path(0.6)
        torch.manual_seed(0)
        with torch.no_grad():
            found = backbone.train()(images).last
            torch.manual_seed(0)
            tokens = backbone.embed(images, (4, 6))
            for number, block in enumerate(backbone._blocks[:2]):
                change = backbone.run_block(block, tokens, None) - tokens
                tokens = tokens + drop_path(change, 0.6 * number / 2, training=True)
        torch.testing.assert_close(found, tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 6)))


def test_what_the_tiny_net_lacks_is_refused_with_the_setting(untrained_clip):
    backbone = backbone_from_visual(untrained_clip.model.visual)
    with pytest.raises(ValueError, match=r"TinyNet has no .* set detector\.drop_path=0"):
        backbone.set_drop_path(0.1)
    with pytest.raises(ValueError, match=r"TinyNet cannot .* set detector\.recompute=false"):
        backbone.checkpoint_activations()


def test_stochastic_depth_acts_in_training_only(visual, family):
    backbone = backbone_from_visual(copy.deepcopy(visual))
    if family == "clip_resnet":
        with pytest.raises(ValueError, match="no stochastic depth"):
            backbone.set_drop_path(0.5)
        return
    images = normal_images(*sizes(family)[1])
    with torch.no_grad():
        before = backbone.dense(images)
        backbone.set_drop_path(0.9)
        assert torch.equal(backbone.eval().dense(images), before)
        torch.manual_seed(0)
        dropped = backbone.train().dense(images)
    assert (dropped - before).abs().max() > 1e-3


def check_a_narrow_image_in_low_precision(visual: Any, height: int, width: int) -> None:
    backbone = backbone_from_visual(copy.deepcopy(visual)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = normal_images(height, width, batch=2).to(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = backbone(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = backbone(images)
            dense, pooled = backbone.project_locations(found.last), backbone.encode(images)
        expected = backbone.project_locations(exact.last)
        exactly_pooled = backbone.encode(images)
    pairs = [*zip(found.features, exact.features, strict=True), (dense, expected), (pooled, exactly_pooled)]
    for ours, theirs in pairs:
        assert (ours.float() - theirs).norm() < 0.05 * theirs.norm()
    if isinstance(backbone, TimmConvolutionBackbone):  # these pool and project in float32
        assert torch.equal(pooled, exactly_pooled)


def test_narrow_images_have_the_features_of_float32(visual, family):
    """Narrow images have the features of float32, although oneDNN's strided convolutions in bfloat16 are wrong for a
    last map of one column."""
    check_a_narrow_image_in_low_precision(visual, *((280, 28) if family == "vit_14" else (320, 32)))


def test_narrow_images_have_the_features_of_float32_in_a_net_with_strided_convolutions():
    torch.manual_seed(0)
    settings = {"timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear", "image_size": 64, **TIMM}
    visual = randomize(_build_vision_tower(DIM, CLIPVisionCfg(**settings)).eval())
    check_a_narrow_image_in_low_precision(visual, 320, 32)


def test_unknown_backbones_are_refused():
    with pytest.raises(ValueError, match="Linear is not a supported backbone"):
        backbone_from_visual(nn.Linear(1, 1))
    model = _build_vision_tower(DIM, CLIPVisionCfg(**FAMILIES["convnext"]))
    with pytest.raises(ValueError, match=r"detector\.window is only for transformers"):
        backbone_from_visual(model, window=7)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "maxvit_rmlp_pico_rw_256"])
def test_nets_of_a_fixed_size_are_refused_by_name(name: str) -> None:
    config = CLIPVisionCfg(timm_model_name=name, timm_pool="", timm_proj="linear", image_size=224)
    with pytest.raises(ValueError, match="is not a supported backbone"):
        backbone_from_visual(_build_vision_tower(32, config))
