"""Statistics of what passes the gates, against the embeddings themselves."""

import pytest
import torch
from small_detector import build_detector

from ovd.engine.gate_statistics import _learned_paths, gate_statistics
from ovd.model.detector import Detector
from ovd.model.gates import GatedProjection, GatedShortcuts
from ovd.precision import Compute

FLOAT32 = Compute(torch.device("cpu"), low_precision=False)
LEVELS = ["P3", "P4", "P5", "P6", "P7"]
IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def open_gates(detector: Detector) -> None:
    for module in detector.modules():
        if isinstance(module, GatedProjection):
            torch.nn.init.normal_(module.projection.weight, std=0.1)
            torch.nn.init.normal_(module.gate)


def test_a_fresh_detector_adds_nothing(untrained_clip):
    values = gate_statistics(build_detector(untrained_clip, "pyramid", "head"), IMAGES, FLOAT32)
    parts = [*LEVELS, "head"]
    assert values == {f"added/{p}": 0 for p in parts} | {f"gate/{p}": 1 for p in parts} | {"filter/head": 0}


@torch.no_grad()
def test_added_length_is_the_distance_of_the_embeddings_from_the_shortcut(untrained_clip):
    detector = build_detector(untrained_clip, "pyramid").train()
    shortcut = detector(IMAGES).embeddings
    open_gates(detector)
    values = gate_statistics(detector, IMAGES, FLOAT32)
    squares = (detector(IMAGES).embeddings - shortcut).square().sum(dim=2)
    strides = detector.points(IMAGES).strides
    for level, stride in zip(LEVELS, detector.strides, strict=True):
        expected = squares[:, strides == stride].mean().sqrt().item()
        assert values[f"added/{level}"] == pytest.approx(expected, rel=1e-4)
        assert expected > 0.1
    assert {name.split("/")[1] for name in values} == set(LEVELS)


@torch.no_grad()
def test_head_and_filter_count_the_points_of_all_levels(untrained_clip):
    detector = build_detector(untrained_clip, "head")
    assert isinstance(detector.shortcuts, GatedShortcuts)
    assert detector.shortcuts.head is not None
    learned, weights = detector.shortcuts.head.learned, detector.shortcuts.head.filter.weights
    assert learned.projection.bias is not None
    assert weights.bias is not None
    learned.projection.bias.fill_(3.0)
    learned.gate.fill_(-0.5)
    weights.bias.copy_(torch.tensor([1.0, -1.0, 0.25] * 3))
    values = gate_statistics(detector, IMAGES, FLOAT32)
    assert values == pytest.approx({"added/head": 1.5 * 256**0.5, "gate/head": 0.5, "filter/head": 0.75})


@pytest.mark.parametrize("training", [True, False])
def test_looking_leaves_no_trace(untrained_clip, training):
    detector = build_detector(untrained_clip, "pyramid", "head").train(training)
    open_gates(detector)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    random_state = torch.get_rng_state()
    gate_statistics(detector, IMAGES, FLOAT32)
    with pytest.raises(ValueError, match="not multiples"):
        gate_statistics(detector, IMAGES[:, :, :50], FLOAT32)
    assert detector.training == training
    assert not any(module._forward_hooks for module in detector.modules())
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_detector_without_shortcuts_is_not_asked(untrained_clip):
    with pytest.raises(AssertionError, match="no gates"):
        gate_statistics(build_detector(untrained_clip), IMAGES, FLOAT32)


def test_levels_are_named_by_the_stride_that_is_nearest(untrained_clip):
    shortcuts = build_detector(untrained_clip, "pyramid", "head").shortcuts
    assert isinstance(shortcuts, GatedShortcuts)
    for strides in ([8, 16, 32, 64, 128], [7, 14, 28, 56, 112]):  # the second set is that of patches of 14 px
        assert list(_learned_paths(shortcuts, strides)) == [*LEVELS, "head"]
