"""The detector and its parts: batches of any shape, gradients of trained parameters, and the shortcut filter."""

import pytest
import torch
from small_detector import build_detector

from ovd.model.fcos_head import make_points
from ovd.model.fpn import FeaturePyramid
from ovd.model.gates import GatedProjection, GatedShortcuts, PlainProjection, ShortcutFilter
from ovd.model.neighbors import MAX_BAND_WIDTH, add_weighted_neighbors
from ovd.model.resample import resample_dense
from ovd.model.t_head import TaskAlignedHead


@pytest.fixture(
    params=[(("pyramid", "head"), False), ((), False), (("pyramid", "head"), True), ((), True)],
    ids=["gated", "without shortcuts", "gated, task-aligned head", "without shortcuts, task-aligned head"],
)
def detector(request, untrained_clip):
    places, task_aligned = request.param
    return build_detector(untrained_clip, *places, per_channel_gates=False, task_aligned=task_aligned)


def images(batch, height, width):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_one_image_equals_the_same_image_in_a_batch(detector):
    batch = images(3, 96, 64)
    together = detector(batch)
    for row in range(3):
        alone = detector(batch[row : row + 1])
        for name in ("embeddings", "boxes", "quality"):
            torch.testing.assert_close(getattr(together, name)[row], getattr(alone, name)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (224, 32)])
def test_predictions_belong_to_the_points(detector, size):
    batch = images(1, *size)
    predictions = detector(batch)
    points = detector.points(batch)
    num_points = len(points.centers)
    assert num_points == sum(-(-size[0] // s) * -(-size[1] // s) for s in (8, 16, 32, 64, 128))
    assert predictions.embeddings.shape == (1, num_points, 256)
    # Distances are positive, so every box contains its own point.
    x, y = points.centers.unbind(1)
    x0, y0, x1, y1 = predictions.boxes[0].unbind(1)
    assert ((x0 < x) & (x < x1) & (y0 < y) & (y < y1)).all()


def test_points_are_cell_centers_row_by_row():
    points = make_points((16, 24), [8], torch.device("cpu"))
    assert points.centers.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert points.strides.tolist() == [8] * 6


def test_training_mode_leaves_the_backbone_frozen_in_its_statistics(detector):
    detector.train()
    before = {name: buffer.clone() for name, buffer in detector.backbone.named_buffers()}
    detector(images(2, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in detector.backbone.named_buffers())
    assert detector.head.training


def test_every_parameter_of_a_trained_detector_gets_a_gradient(detector):
    for module in detector.modules():
        if isinstance(module, GatedProjection):  # a projection at zero blocks the gradients before it
            torch.nn.init.normal_(module.projection.weight, std=0.1)
        if isinstance(module, ShortcutFilter):
            torch.nn.init.normal_(module.weights.weight, std=0.1)
        if isinstance(module, TaskAlignedHead):  # so do offsets at zero
            for parameter in module.offsets[-1].parameters():
                torch.nn.init.normal_(parameter, std=0.1)
    predictions = detector(images(1, 64, 64))
    loss = predictions.embeddings.square().mean() + predictions.boxes.mean() + predictions.quality.mean()
    loss = loss + detector.scale + detector.bias
    loss.backward()
    learned = [(name, p) for name, p in detector.named_parameters() if p.requires_grad]
    assert [name for name, p in learned if p.grad is None or p.grad.abs().sum().item() == 0] == []
    frozen = {name for name, p in detector.named_parameters() if not p.requires_grad}
    assert frozen <= {"backbone.projection.proj.weight"}


def test_the_learned_path_is_silent_at_first_and_learns_from_the_first_step():
    learned = GatedProjection(3, 4, per_channel=True)
    x = torch.randn(1, 3, 2, 2)
    assert learned(x).abs().max() == 0
    learned(x).sum().backward()
    assert learned.projection.weight.grad is not None
    assert learned.projection.weight.grad.abs().min() > 0


def test_filter_is_the_sum_of_its_weights_times_the_points_around():
    torch.manual_seed(0)
    shortcut, features = torch.randn(2, 5, 4, 6), torch.randn(2, 3, 4, 6)
    layer = ShortcutFilter(3, 3)
    assert torch.equal(layer(shortcut, features), shortcut)
    torch.nn.init.normal_(layer.weights.weight)
    assert layer.weights.bias is not None
    torch.nn.init.normal_(layer.weights.bias)
    weights = layer.weights(features)
    expected = shortcut.clone()
    for y in range(4):
        for x in range(6):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < 4 and 0 <= x + dx < 6:
                        weight = weights[:, 3 * (dy + 1) + dx + 1, y, x, None]
                        expected[:, :, y, x] += weight * shortcut[:, :, y + dy, x + dx]
    torch.testing.assert_close(layer(shortcut, features), expected)


def test_filter_keeps_to_the_span_of_the_shortcut():
    """The filter stays in the span of the shortcut: no weights can add a channel that it holds nowhere."""
    shortcut = torch.randn(1, 4, 5, 5)
    shortcut[:, 2] = 0
    layer = ShortcutFilter(3, 5)
    torch.nn.init.normal_(layer.weights.weight)
    assert layer(shortcut, torch.randn(1, 3, 5, 5))[:, 2].abs().max() == 0


def test_sides_that_the_backbone_cannot_take_are_refused(detector):
    with pytest.raises(ValueError, match=r"\(60, 64\) are not multiples of 32"):
        detector(images(1, 60, 64))


def test_resampled_features_have_unit_length():
    dense = torch.randn(2, 8, 3, 5)
    for size, stride in (((6, 10), 8), ((3, 5), 16), ((2, 3), 32)):
        resampled = resample_dense(dense, 16, size, stride)
        assert resampled.shape == (2, 8, *size)
        torch.testing.assert_close(resampled.norm(dim=1), torch.ones(2, *size))


def test_pyramid_refuses_strides_with_gaps():
    with pytest.raises(ValueError, match="twice the one before"):
        FeaturePyramid((8, 8), (8, 32), 32)


@pytest.mark.parametrize("places", [("pyramid",), ("head",), ("pyramid", "head"), ()])
def test_the_learned_path_joins_where_it_is_told_to(untrained_clip, places):
    """The learned path joins only at the given places: only their gates exist, each reaches the embeddings, and every
    trainable parameter gets a gradient."""
    detector = build_detector(untrained_clip, *places)
    gates = [module for module in detector.modules() if isinstance(module, GatedProjection)]
    assert len(gates) == ("pyramid" in places) * len(detector.strides) + ("head" in places)
    for gate in gates:
        torch.nn.init.normal_(gate.projection.weight)
    predictions = detector(images(1, 64, 64))
    (predictions.embeddings.square().sum() + predictions.boxes.sum() + predictions.quality.sum()).backward()
    silent = {"log_scale", "threshold"}  # these act on logits, not on predictions
    without = {name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None}
    assert without == silent


def test_the_dense_feature_is_predicted_in_evaluation_where_it_is_asked_for(untrained_clip):
    detector, gated = build_detector(untrained_clip, keeps_dense=True), build_detector(untrained_clip, "head")
    batch = images(1, 64, 96)
    assert detector.train()(batch).dense is None
    found = detector.eval()(batch)
    torch.testing.assert_close(found.dense, gated.eval()(batch).embeddings)  # which is dense CLIP


def test_its_classifier_is_at_its_scale_and_bias(untrained_clip):
    detector = build_detector(untrained_clip)
    detector.set_bias(-3.0)
    text = torch.nn.functional.normalize(torch.randn(3, 256), dim=1)
    classifier = detector.classifier(text, torch.tensor([2, 5, 9]))
    embeddings = torch.randn(4, 256)
    expected = 10 * torch.cosine_similarity(embeddings[:, None], text, dim=-1) - 3
    torch.testing.assert_close(classifier.logits(embeddings), expected)
    assert classifier.class_ids.tolist() == [2, 5, 9]
    assert detector.classifier(text).class_ids.tolist() == [0, 1, 2]
    classifier.logits(embeddings).square().sum().backward()
    assert detector.log_scale.grad is not None
    assert detector.threshold.grad is not None


@pytest.mark.parametrize(("height", "width", "size"), [(5, 7, 3), (1, 1, 3), (2, 1, 5), (4, 4, 5)])
def test_the_filter_equals_padding_and_shifting_with_its_gradients(height, width, size):
    generator = torch.Generator().manual_seed(0)
    layer = ShortcutFilter(4, size).double()
    torch.nn.init.normal_(layer.weights.weight, generator=generator)
    shortcut = torch.randn(2, 6, height, width, dtype=torch.float64, generator=generator, requires_grad=True)
    features = torch.randn(2, 4, height, width, dtype=torch.float64, generator=generator, requires_grad=True)
    direction = torch.randn(2, 6, height, width, dtype=torch.float64, generator=generator)

    weights = layer.weights(features).float()
    around = torch.nn.functional.pad(shortcut, [size // 2] * 4)
    expected = shortcut
    for index in range(size**2):
        y, x = divmod(index, size)
        expected = expected + weights[:, index, None] * around[..., y : y + height, x : x + width]
    found = layer(shortcut, features)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    inputs = (shortcut, features, layer.weights.weight)
    for ours, reference in zip(
        torch.autograd.grad((found * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(5, 7, 3), (1, 1, 3), (2, 1, 5), (1, 9, 5), (9, 1, 3), (3, MAX_BAND_WIDTH + 1, 3)]
)
def test_in_low_precision_the_filter_differs_by_rounding_alone(batch, height, width, size):
    generator = torch.Generator().manual_seed(0)
    shortcut = torch.randn(batch, height, width, 8, generator=generator).bfloat16().permute(0, 3, 1, 2)
    weights = (0.3 * torch.randn(batch, size * size, height, width, generator=generator)).bfloat16()
    found = add_weighted_neighbors(shortcut, weights, size)
    assert found.dtype == torch.bfloat16
    expected = add_weighted_neighbors(shortcut.float(), weights.float(), size)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.05)
    for row in range(batch):
        assert torch.equal(add_weighted_neighbors(shortcut[row : row + 1], weights[row : row + 1], size)[0], found[row])
    assert torch.equal(add_weighted_neighbors(shortcut, torch.zeros_like(weights), size), shortcut)


@pytest.mark.parametrize(("height", "width"), [(16, 2), (2, 16), (16, 4), (1, 1)])
@pytest.mark.parametrize("learns", [False, True])
def test_coarse_levels_of_thin_images_are_those_of_float32(height: int, width: int, learns: bool):
    """Coarse levels of thin images equal those of float32, although oneDNN reads beyond narrow maps in strided
    convolutions with bfloat16 and channels last."""
    torch.manual_seed(0)
    pyramid = FeaturePyramid((64, 64), (8, 16), 256).to(memory_format=torch.channels_last).requires_grad_(learns)
    maps = [torch.randn(2, 64, height, width), torch.randn(2, 64, (height + 1) // 2, (width + 1) // 2)]
    maps = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    with torch.no_grad():
        exact = pyramid(tuple(maps))
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            levels = pyramid(tuple(maps))
        for level, expected in zip(levels, exact, strict=True):
            torch.testing.assert_close(level.detach().float(), expected, rtol=0.05, atol=0.1)


def test_coarse_levels_of_one_cell_have_finite_gradients():
    """Gradients of one-cell levels are finite; oneDNN gave NaN for a strided convolution of one cell with bfloat16 and
    channels last."""
    torch.manual_seed(0)
    pyramid = FeaturePyramid((8, 16), (8, 16), 32).to(memory_format=torch.channels_last)
    maps = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
    maps = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            levels = pyramid(tuple(maps))
        assert [level.shape[-1] for level in levels] == [8, 4, 2, 1, 1]
        sum(level.float().square().mean() for level in levels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pyramid.parameters())
    padded = torch.nn.functional.pad(levels[3].float(), (0, 1, 0, 1)).relu()
    with torch.no_grad():
        torch.testing.assert_close(pyramid.extras[2](padded), pyramid.extras[2](levels[3].float().relu()))


@pytest.mark.parametrize("per_channel", [False, True])
def test_gates_are_numbers_or_one_for_each_channel(per_channel):
    shortcuts = GatedShortcuts(2, 8, 5, places=["pyramid", "head"], per_channel=per_channel, filter_size=3)
    gates = [parameter for name, parameter in shortcuts.named_parameters() if name.endswith("gate")]
    assert [len(gate) for gate in gates] == [5 if per_channel else 1] * 3


def test_a_projection_without_shortcuts_starts_at_unit_length():
    torch.manual_seed(0)
    (out,) = PlainProjection(64, 32)([], [], [torch.randn(1, 64, 20, 20)])
    assert out.norm(dim=1).mean().item() == pytest.approx(1, abs=0.2)


@torch.no_grad()
def test_the_form_that_is_compiled_computes_the_same(untrained_clip, monkeypatch):
    torch.manual_seed(0)
    detector = build_detector(untrained_clip, "pyramid", "head", per_channel_gates=True)
    for module in detector.modules():
        if isinstance(module, GatedProjection):
            torch.nn.init.normal_(module.projection.weight, std=0.01)
    expected = detector(images(1, 64, 64)).embeddings
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(detector(images(1, 64, 64)).embeddings, expected, atol=1e-4, rtol=1e-4)
