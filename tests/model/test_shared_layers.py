"""A copy that shares a backbone's first layers predicts what a whole detector does, for every family."""

import copy

import pytest
import torch
from small_backbones import FAMILIES, SLOW, random_visual
from small_detector import detector_around
from torch import nn

from ovd.model.backbone_families import backbone_from_visual
from ovd.model.detector import Detector
from ovd.model.shared_layers import copy_sharing_layers, shared_parameters

LARGE = {"siglip", "eva02"}
"""Families whose smallest model has twelve blocks."""
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW | LARGE else []) for name in FAMILIES]


def detector_of(family: str) -> Detector:
    backbone = backbone_from_visual(random_visual(family))
    with torch.no_grad():
        dim = backbone.dense(torch.zeros(1, 3, 2 * backbone.size_divisor, 2 * backbone.size_divisor)).shape[1]
    torch.manual_seed(1)
    detector = detector_around(backbone, "pyramid", "head", text_dim=dim, mean=(0.5,) * 3, std=(0.25,) * 3)
    return detector.eval()


def disturb(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


def images_for(detector: Detector, seed: int) -> torch.Tensor:
    side = detector.size_divisor
    return torch.randint(
        0, 256, (2, 3, 2 * side, 3 * side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_predictions_with_shared_layers_are_those_of_a_whole_detector(family: str) -> None:
    """Predictions with shared layers equal those of a whole detector that has the same weights and computes all of its
    layers."""
    base = detector_of(family)
    num_layers = len(base.backbone.layers())
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    images = images_for(base, seed=3)
    alone = base(images)
    for own_layers in sorted({0, 1, num_layers // 2, num_layers}):
        expert, shared = copy_sharing_layers(base, own_layers)
        of_base = {id(parameter) for parameter in base.parameters()}
        own = [parameter for parameter in expert.parameters() if id(parameter) not in of_base]
        disturb(own, seed=own_layers)
        whole = detector_of(family)
        whole.load_state_dict(expert.state_dict())
        expected = whole(images)

        if shared is None:
            assert own_layers == 0
            pixels = base.normalize(images)
            features = base.backbone(pixels)
            found, of_base_now = expert.predict_from(features, pixels), base.predict_from(features, pixels)
        else:
            with shared.recording():
                of_base_now = base(images)
                found = expert(images)
            if own_layers < num_layers:
                with pytest.raises(KeyError):  # no shared features are kept for other images
                    expert(images)
        for name in ("embeddings", "boxes", "quality"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), (own_layers, name)
            assert torch.equal(getattr(of_base_now, name), getattr(alone, name))
        assert not torch.equal(found.embeddings, alone.embeddings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_shared_layers_do_not_run_twice(family: str) -> None:
    base = detector_of(family)
    expert, shared = copy_sharing_layers(base, 1)
    assert shared is not None
    common = {id(parameter) for parameter in shared_parameters(base.backbone, 1)}
    ran: list[str] = []
    for name, module in expert.backbone.named_modules():
        own = list(module.parameters(recurse=False))
        if own and all(id(parameter) in common for parameter in own) and "forward" not in vars(module):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    images = images_for(base, seed=4)
    with shared.recording():
        base(images)
        expert(images)
    # Of the modules with shared parameters, only those run that also contain other modules.
    assert [name for name in ran if list(expert.backbone.get_submodule(name).children()) == []] == []


def test_own_layers_beyond_the_backbones_are_refused() -> None:
    base = detector_of("vit")
    with pytest.raises(ValueError, match=r"own_layers is 9, but the backbone has \d layers"):
        copy_sharing_layers(base, 9)


def test_an_original_can_be_copied_after_it_has_been_shared() -> None:
    base = detector_of("clip_resnet")
    copy_sharing_layers(base, 1)
    again = copy.deepcopy(base)
    images = images_for(base, seed=5)
    with torch.no_grad():
        assert torch.equal(again(images).embeddings, base(images).embeddings)
