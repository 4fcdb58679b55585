"""Focal, box and quality losses and their gradients against double precision, torchvision and loops over points."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from ovd.model.assign import assign_fcos
from ovd.model.focal import MIN_TEXT_NUMBERS, _background_focal_, chunked_focal_loss, point_focal_loss
from ovd.model.losses import ClassMasks, box_and_quality_losses, detection_losses, match_points
from ovd.model.similarity import EPSILON, TextClassifier, text_cosines, unit_embeddings
from ovd.structures import IGNORED, Assignment, Points, Predictions, Targets

# --- the class loss


@dataclass(frozen=True)
class Inputs:
    embeddings: Tensor
    text: Tensor
    labels: Tensor
    class_mask: Tensor
    group: Tensor
    scale: Tensor
    bias: Tensor

    @property
    def differentiable(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.embeddings, self.text, self.scale, self.bias

    def in_float64(self) -> "Inputs":
        embeddings, text, scale, bias = (x.detach().double().requires_grad_() for x in self.differentiable)
        return replace(self, embeddings=embeddings, text=text, scale=scale, bias=bias)


def make_inputs(num_points: int, num_classes: int, dim: int = 16, *, masked: bool = True) -> Inputs:
    """Make random inputs in which some points are background and some are ignored."""
    generator = torch.Generator().manual_seed(num_points + num_classes)
    labels = torch.randint(-4, num_classes, (num_points,), generator=generator)
    num_groups = 3 if masked else 1
    return Inputs(
        embeddings=torch.randn(num_points, dim, generator=generator).requires_grad_(),
        text=unit_embeddings(torch.randn(num_classes, dim, generator=generator)).requires_grad_(),
        labels=torch.where(labels == -4, IGNORED, labels.clamp(min=-1)),
        class_mask=torch.rand(num_groups, num_classes, generator=generator) < (0.6 if masked else 1),
        group=torch.randint(0, num_groups, (num_points,), generator=generator),
        scale=torch.tensor(20.0, requires_grad=True),
        bias=torch.tensor(-3.0, requires_grad=True),
    )


def chunked_loss(x: Inputs, *, chunk_size: int | None = None) -> Tensor:
    classifier = TextClassifier(x.text, torch.arange(len(x.text)), x.scale, x.bias)
    return chunked_focal_loss(x.embeddings, classifier, x.labels, x.class_mask, x.group, chunk_size=chunk_size)


def dense_loss(x: Inputs) -> Tensor:
    unit = x.embeddings / x.embeddings.norm(dim=1, keepdim=True)
    logits = x.scale * (unit @ x.text.T) + x.bias
    own = x.labels[:, None] == torch.arange(len(x.text))
    counts = (x.class_mask[x.group] | own) & (x.labels[:, None] != IGNORED)
    return (sigmoid_focal_loss(logits, own.to(logits)) * counts).sum()


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def assert_relatively_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Check equality within `tolerance` of the largest number, since small gradients are differences of larger ones."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs()
    assert error.numel() == 0 or error.max() <= tolerance * expected.double().abs().max()


@pytest.mark.parametrize("masked", [True, False])
def test_gradcheck(masked: bool) -> None:
    inputs = make_inputs(5, 4, 3, masked=masked).in_float64()

    def loss(embeddings: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        moved = replace(inputs, embeddings=embeddings, text=text, scale=scale, bias=bias)
        return chunked_loss(moved, chunk_size=2)

    assert torch.autograd.gradcheck(loss, inputs.differentiable)


@pytest.mark.parametrize("num_points", [0, 1, 37, 64])
@pytest.mark.parametrize("chunk_size", [1, 16, 1000, None])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_torchvision_on_dense_logits(num_points: int, chunk_size: int | None, masked: bool) -> None:
    inputs = make_inputs(num_points, 29, masked=masked)
    loss = chunked_loss(inputs, chunk_size=chunk_size)
    exact = inputs.in_float64()  # without rounding errors of the reference
    expected = dense_loss(exact)
    assert_relatively_close(loss, expected, 1e-6)
    found, wanted = gradients(loss, *inputs.differentiable), gradients(expected, *exact.differentiable)
    for a, b in zip(found, wanted, strict=True):
        assert_relatively_close(a, b, 1e-6)


def test_no_positives() -> None:
    inputs = make_inputs(20, 7)
    inputs = replace(inputs, labels=torch.full_like(inputs.labels, -1))
    torch.testing.assert_close(chunked_loss(inputs), dense_loss(inputs))


def test_masked_classes_have_no_say_but_in_their_own_points() -> None:
    inputs = make_inputs(40, 7)
    inputs = replace(inputs, class_mask=torch.zeros(3, 7, dtype=torch.bool))
    (gradient,) = gradients(chunked_loss(inputs), inputs.embeddings)
    assert torch.equal((gradient != 0).any(dim=1), inputs.labels >= 0)
    assert (inputs.labels >= 0).any()


@pytest.mark.parametrize("logit", [-200.0, -100.0, -20.0, 0.0, 20.0, 100.0])
@pytest.mark.parametrize("label", [-1, 0])
def test_extreme_logits(logit: float, label: int) -> None:
    one, counts, group = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.tensor([0])
    bias = torch.tensor(0.0, requires_grad=True)
    inputs = Inputs(one, one, torch.tensor([label]), counts, group, torch.tensor(logit), bias)
    exact = inputs.in_float64()
    loss, expected = chunked_loss(inputs), dense_loss(exact)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-30)
    (found,), (wanted,) = gradients(loss, inputs.bias), gradients(expected, exact.bias)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("bias", [-30.0, -35.0, -40.0])
def test_low_logits_have_no_denormal_gradients(bias: float) -> None:
    """Low logits have no denormal gradients, which a CPU takes 20 times as long to multiply."""
    inputs = replace(make_inputs(200, 50), bias=torch.tensor(bias, requires_grad=True), labels=torch.full((200,), -1))
    for gradient in gradients(chunked_loss(inputs), *inputs.differentiable):
        is_denormal = (gradient != 0) & (gradient.abs() < torch.finfo(gradient.dtype).tiny)
        assert not is_denormal.any()


@pytest.mark.parametrize("length", [0.0, EPSILON / 2, EPSILON * 2, 1e-3, 1e4])
def test_embeddings_of_any_length(length: float) -> None:
    """Gradients are right for embeddings of any length, as through torch's normalize, which leaves the shortest ones
    below length 1."""
    inputs = make_inputs(20, 7, masked=False)
    embeddings = (length * unit_embeddings(inputs.embeddings.detach())).requires_grad_()
    (found,) = gradients(chunked_loss(replace(inputs, embeddings=embeddings)), embeddings)
    exact = replace(inputs.in_float64(), embeddings=embeddings.detach().double().requires_grad_())
    scaled = torch.nn.functional.normalize(exact.embeddings, eps=EPSILON)
    own = exact.labels[:, None] == torch.arange(7)
    losses = sigmoid_focal_loss(exact.scale * scaled @ exact.text.T + exact.bias, own.double())
    (wanted,) = gradients(losses[exact.labels != IGNORED].sum(), exact.embeddings)
    assert_relatively_close(found, wanted, 1e-5)


def test_half_precision_embeddings() -> None:
    inputs = make_inputs(40, 7)
    halved = inputs.embeddings.detach().bfloat16().requires_grad_()
    single = halved.detach().float().requires_grad_()
    losses = [chunked_loss(replace(inputs, embeddings=x)) for x in (halved, single)]
    assert torch.equal(*losses)
    (found,), (wanted,) = gradients(losses[0], halved), gradients(losses[1], single)
    assert torch.equal(found, wanted.bfloat16())


def test_all_points_left_out() -> None:
    inputs = make_inputs(20, 7)
    inputs = replace(inputs, labels=torch.full_like(inputs.labels, IGNORED))
    loss = chunked_loss(inputs)
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients(loss, *inputs.differentiable))


@pytest.mark.parametrize("which", range(4))
def test_only_the_gradients_asked_for(which: int) -> None:
    inputs = make_inputs(20, 7)
    asked, exact = inputs.differentiable[which], inputs.in_float64()
    (expected,) = gradients(3 * dense_loss(exact), exact.differentiable[which])
    for i, x in enumerate(inputs.differentiable):
        x.requires_grad_(i == which)
    (3 * chunked_loss(inputs, chunk_size=8)).backward()
    assert [x.grad is not None for x in inputs.differentiable] == [i == which for i in range(4)]
    assert asked.grad is not None
    torch.testing.assert_close(asked.grad.double(), expected, rtol=1e-5, atol=1e-5)


def test_without_gradients() -> None:
    inputs = make_inputs(20, 7)
    with torch.no_grad():
        loss = chunked_loss(inputs)
    assert not loss.requires_grad
    assert torch.equal(loss, chunked_loss(inputs))


def test_no_second_derivative() -> None:
    inputs = make_inputs(20, 7)
    (gradient,) = torch.autograd.grad(chunked_loss(inputs) ** 2, inputs.embeddings, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_kept_graph_gives_the_same_gradients_again() -> None:
    inputs = make_inputs(20, 7)
    loss = 3 * chunked_loss(inputs)
    first = torch.autograd.grad(loss, inputs.differentiable, retain_graph=True)
    again = torch.autograd.grad(loss, inputs.differentiable)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_freed_graph_gives_away_the_memory_of_its_gradients() -> None:
    inputs = make_inputs(20, 7)
    for is_kept in (True, False):
        loss = chunked_loss(inputs)
        saved = loss.grad_fn.saved_tensors[0].data_ptr()  # type: ignore[union-attr]
        (gradient,) = torch.autograd.grad(loss, inputs.embeddings, retain_graph=is_kept)
        assert (gradient.data_ptr() != saved) == is_kept


def test_same_bits_every_time_and_inputs_untouched() -> None:
    inputs = make_inputs(300, 50)
    before = [x.detach().clone() for x in inputs.differentiable]
    runs = []
    for _ in range(3):
        loss = chunked_loss(inputs, chunk_size=64)
        runs.append([loss, *gradients(loss, *inputs.differentiable)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs.differentiable, before, strict=True))


def test_autocast_rounds_the_products_alone() -> None:
    inputs = make_inputs(200, 50)
    exact = chunked_loss(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = chunked_loss(inputs)
    assert rounded.dtype == torch.float32
    assert rounded != exact
    torch.testing.assert_close(rounded, exact, rtol=5e-3, atol=0)
    found, wanted = gradients(rounded, *inputs.differentiable), gradients(exact, *inputs.differentiable)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert_relatively_close(a, b, 2e-2)

    # With scale 0 only the bias and the focal loss are left, which are not rounded to bfloat16.
    inputs = replace(inputs, scale=torch.tensor(0.0), bias=torch.tensor(-1.2345678))
    exact = chunked_loss(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(chunked_loss(inputs), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("logit", [-100.0, -20.0, -10.0, -4.0, 0.0, 4.0, 10.0, 15.0, 20.0, 80.0])
def test_probabilities_of_low_precision_err_by_an_epsilon(logit: float) -> None:
    num_pairs, epsilon = 30 * 7, torch.finfo(torch.float32).eps
    inputs = replace(make_inputs(30, 7, masked=False), labels=torch.full((30,), -1), scale=torch.tensor(0.0))
    inputs = replace(inputs, bias=torch.tensor(logit, requires_grad=True))
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(inputs)
    (slope,) = gradients(loss, inputs.bias)

    exact = inputs.bias.detach().double().requires_grad_()
    expected = num_pairs * 0.75 * exact.sigmoid() ** 2 * torch.nn.functional.softplus(exact)
    (expected_slope,) = gradients(expected, exact)
    tolerance = 10 * epsilon * num_pairs * float(exact.detach().sigmoid()) ** 2  # both are proportional to p**2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=tolerance)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-6, atol=tolerance)


def test_what_text_rows_have_in_common_costs_no_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = make_inputs(300, 200, 64)
    common = 2 * unit_embeddings(torch.randn(1, 64, generator=generator))  # CLIP's rows have cosines of 0.8
    text = unit_embeddings(unit_embeddings(torch.randn(200, 64, generator=generator)) + common)
    embeddings = 0.3 * unit_embeddings(torch.randn(300, 64, generator=generator)) + 0.1 * common
    inputs = replace(
        inputs,
        embeddings=embeddings.requires_grad_(),
        text=text.requires_grad_(),
        scale=torch.tensor(100.0, requires_grad=True),
        bias=torch.tensor(-60.0, requires_grad=True),
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(inputs)
    exact = inputs.in_float64()
    expected = dense_loss(exact)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=0)
    found, wanted = gradients(loss, *inputs.differentiable), gradients(expected, *exact.differentiable)
    for a, b in zip(found, wanted, strict=True):
        assert_relatively_close(a, b, 1e-2)


@pytest.mark.parametrize(("num_classes", "is_rounded"), [(MIN_TEXT_NUMBERS // 16 - 1, False), (5000, True)])
def test_low_precision_is_for_many_text_rows(num_classes: int, is_rounded: bool) -> None:
    x = make_inputs(20, num_classes)
    classifier = TextClassifier(x.text, torch.arange(num_classes), x.scale, x.bias)
    arguments = (x.embeddings, classifier, x.labels, x.class_mask, x.group)
    plain, low = (point_focal_loss(*arguments, low_precision=low_precision) for low_precision in (False, True))
    assert (plain != low) == is_rounded
    torch.testing.assert_close(low, plain, rtol=5e-3, atol=0)


class LargestStorage(TorchDispatchMode):
    """A dispatch mode that records the largest storage of any result, inside autograd functions, too."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.num_bytes = max(self.num_bytes, leaf.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("autocast", [False, True])
def test_never_holds_points_times_classes(autocast: bool) -> None:
    num_points, num_classes, dim, chunk_size = 1000, 300, 8, 50
    inputs = make_inputs(num_points, num_classes, dim)
    with LargestStorage() as chunked, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        chunked_loss(inputs, chunk_size=chunk_size).backward()
    with LargestStorage() as dense:
        dense_loss(inputs).backward()
    assert dense.num_bytes >= 4 * num_points * num_classes
    assert chunked.num_bytes <= 4 * max(4 * chunk_size * num_classes, num_points * dim)


# --- the box and quality losses


def test_box_and_quality_equal_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(9, 2, generator=generator) * 100
    true_boxes = torch.cat(
        [
            centers - 1 - 20 * torch.rand(9, 2, generator=generator),
            centers + 1 + 30 * torch.rand(9, 2, generator=generator),
        ],
        1,
    )
    boxes = true_boxes + torch.randn(9, 4, generator=generator)
    quality = torch.randn(9, generator=generator)
    points = torch.cat([centers, centers], dim=1)  # points as boxes without area, for torchvision's coder
    left, top, right, bottom = BoxLinearCoder(normalize_by_size=False).encode(points, true_boxes).unbind(1)
    centerness = torch.tensor(
        [
            (min(a, c) / max(a, c) * min(b, d) / max(b, d)) ** 0.5
            for a, b, c, d in zip(left.tolist(), top.tolist(), right.tolist(), bottom.tolist(), strict=True)
        ]
    )
    loss_box, loss_quality = box_and_quality_losses(
        boxes, quality, true_boxes=true_boxes, weights=centerness, unmatched_center_quality=torch.tensor([0.3, -2.0])
    )

    giou = generalized_box_iou(boxes, true_boxes).diagonal()
    torch.testing.assert_close(loss_box, ((1 - giou) * centerness).sum())
    p = torch.sigmoid(quality)
    of_matched = -(centerness * p.log() + (1 - centerness) * (1 - p).log()).sum()
    of_unmatched = -torch.log(1 - torch.sigmoid(torch.tensor([0.3, -2.0]))).sum()
    torch.testing.assert_close(loss_quality, of_matched + of_unmatched)


def test_perfect_boxes_cost_nothing() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    loss_box, loss_quality = box_and_quality_losses(
        boxes,
        torch.tensor([40.0]),
        true_boxes=boxes,
        weights=torch.ones(1),
        unmatched_center_quality=torch.tensor([-40.0]),
    )
    assert loss_box.item() == pytest.approx(0, abs=1e-6)
    assert loss_quality.item() == pytest.approx(0, abs=1e-6)


# --- all losses of a batch

CLASS_IDS = torch.tensor([3, 5, 8, 20])


def make_points() -> Points:
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(10), indexing="ij")
    centers = (torch.stack([columns, rows], dim=2).reshape(-1, 2) + 0.5) * 8
    return Points(centers, torch.full((60,), 8.0))


def make_targets(boxes: list[list[float]], classes: list[int]) -> Targets:
    return replace(
        Targets.empty(),
        boxes=torch.tensor(boxes).reshape(-1, 4),
        classes=torch.tensor(classes, dtype=torch.int64),
    )


def make_predictions(batch: int) -> Predictions:
    generator = torch.Generator().manual_seed(1)
    half = 5 + 5 * torch.rand(batch, 60, 2, generator=generator)
    centers = make_points().centers
    return Predictions(
        embeddings=(5 * torch.randn(batch, 60, 16, generator=generator)).requires_grad_(),
        boxes=torch.cat([centers - half, centers + half], dim=2).requires_grad_(),
        quality=torch.randn(batch, 60, generator=generator).requires_grad_(),
    )


def losses_of(
    predictions: Predictions,
    targets: tuple[Targets, ...],
    class_mask: Tensor | None = None,
    class_mask_in_boxes: Tensor | None = None,
    no_box_loss: Tensor | None = None,
    normalizers: Tensor | None = None,
    sizes: Tensor | None = None,
    low_precision: bool = False,
) -> dict:
    text = unit_embeddings(torch.randn(len(CLASS_IDS), 16, generator=torch.Generator().manual_seed(2)))
    if sizes is None:
        sizes = torch.tensor([[48, 80], [40, 70], [48, 64]])[: len(targets)]
    assignment = assign_fcos(make_points(), targets, sizes=sizes)
    if class_mask is None:
        class_mask = torch.ones(len(targets), len(CLASS_IDS), dtype=torch.bool)
    if no_box_loss is None:
        no_box_loss = torch.zeros(len(targets), dtype=torch.bool)
    matched_points = match_points(assignment, targets, no_box_loss=no_box_loss, points=make_points())
    if normalizers is None:
        normalizers = matched_points.normalizers()
    losses = detection_losses(
        predictions,
        assignment,
        matched_points,
        classifier=TextClassifier(text, CLASS_IDS, torch.tensor(10.0), torch.tensor(-2.0)),
        masks=ClassMasks(class_mask, class_mask if class_mask_in_boxes is None else class_mask_in_boxes),
        normalizers=normalizers,
        low_precision=low_precision,
    )
    return {"losses": losses, "assignment": assignment, "text": text, "normalizers": normalizers}


def test_low_precision_is_of_the_class_loss_alone(monkeypatch) -> None:
    monkeypatch.setattr("ovd.model.focal.MIN_TEXT_NUMBERS", 0)
    targets = (make_targets([[4.0, 4.0, 30.0, 24.0], [40.0, 10.0, 75.0, 45.0]], [8, 3]),)
    high, low = (losses_of(make_predictions(1), targets, low_precision=value)["losses"] for value in (False, True))
    assert low["class"] != high["class"]
    torch.testing.assert_close(low["class"], high["class"], rtol=5e-3, atol=0)
    assert torch.equal(low["box"], high["box"])
    assert torch.equal(low["quality"], high["quality"])


def test_losses_of_a_batch_equal_loops_over_points() -> None:
    targets = (
        make_targets([[4.0, 4.0, 30.0, 24.0], [40.0, 10.0, 75.0, 45.0]], [8, 3]),
        make_targets([], []),
        make_targets([[10.0, 10.0, 50.0, 40.0]], [20]),
    )
    class_mask = torch.tensor([[True, False, True, True], [True, True, False, True], [False, False, False, False]])
    class_mask_in_boxes = torch.tensor([[False, True, True, True], [True, True, True, True], [True, True, True, False]])
    predictions = make_predictions(3)
    result = losses_of(predictions, targets, class_mask, class_mask_in_boxes)
    assignment = result["assignment"]
    assert assignment.ignored.any()

    total, boxes, true_boxes, centers, quality = torch.zeros(()), [], [], [], []
    for b, image in enumerate(targets):
        logits = 10.0 * text_cosines(predictions.embeddings[b], result["text"]) - 2.0
        for p in range(60):
            row = int(assignment.matched[b, p])
            if assignment.ignored[b, p]:
                continue
            own = image.classes[row] == CLASS_IDS if row >= 0 else torch.zeros(4, dtype=torch.bool)
            counts = (class_mask_in_boxes if row >= 0 else class_mask)[b] | own
            total = total + (sigmoid_focal_loss(logits[p], own.float()) * counts).sum()
            if row >= 0:
                boxes.append(predictions.boxes[b, p])
                true_boxes.append(image.boxes[row])
                centers.append(make_points().centers[p])
                quality.append(predictions.quality[b, p])
    assert len(boxes) > 10
    left, top = (torch.stack(centers) - torch.stack(true_boxes)[:, :2]).unbind(1)
    right, bottom = (torch.stack(true_boxes)[:, 2:] - torch.stack(centers)).unbind(1)
    across, down = (torch.minimum(a, b) / torch.maximum(a, b) for a, b in ((left, right), (top, bottom)))
    weights = (across * down).sqrt()
    loss_box, loss_quality = box_and_quality_losses(
        torch.stack(boxes),
        torch.stack(quality),
        true_boxes=torch.stack(true_boxes),
        weights=weights,
        unmatched_center_quality=torch.zeros(0),  # with one level there are none
    )
    expected = {
        "class": total / len(boxes),
        "box": loss_box / weights.sum(),
        "quality": loss_quality / len(boxes),
    }
    assert list(result["losses"]) == list(expected)
    for name, loss in result["losses"].items():
        torch.testing.assert_close(loss, expected[name])


def test_losses_of_the_parts_of_a_batch_add_up_to_those_of_the_whole() -> None:
    targets = (
        make_targets([[4.0, 4.0, 30.0, 24.0], [40.0, 10.0, 75.0, 45.0]], [8, 3]),
        make_targets([], []),
        make_targets([[10.0, 10.0, 50.0, 40.0]], [20]),
    )
    predictions = make_predictions(3)
    whole = losses_of(predictions, targets)
    total = dict.fromkeys(whole["losses"], 0.0)
    for image, target in enumerate(targets):
        row = slice(image, image + 1)
        part = Predictions(predictions.embeddings[row], predictions.boxes[row], predictions.quality[row])
        sizes = torch.tensor([[48, 80], [40, 70], [48, 64]])[row]
        for name, loss in losses_of(part, (target,), normalizers=whole["normalizers"], sizes=sizes)["losses"].items():
            total[name] += loss.item()
    for name, loss in whole["losses"].items():
        assert total[name] == pytest.approx(loss.item(), rel=1e-5)


def test_boxes_that_teach_names_alone_leave_the_box_branch_to_the_other_images() -> None:
    targets = (make_targets([[4.0, 4.0, 30.0, 24.0]], [8]), make_targets([[10.0, 10.0, 50.0, 40.0]], [20]))
    predictions = make_predictions(2)
    both = losses_of(predictions, targets)["losses"]
    first = losses_of(predictions, targets, no_box_loss=torch.tensor([False, True]))["losses"]
    assert torch.equal(first["class"], both["class"])
    assert first["box"] != both["box"]
    (first["box"] + first["quality"]).backward()
    assert predictions.boxes.grad is not None
    assert predictions.quality.grad is not None
    for gradient in (predictions.boxes.grad, predictions.quality.grad):
        assert gradient[0].abs().sum() > 0
        assert gradient[1].abs().sum() == 0
    alone = losses_of(make_predictions(2), (targets[0], make_targets([], [])))["losses"]
    torch.testing.assert_close(first["box"], alone["box"])
    torch.testing.assert_close(first["quality"], alone["quality"])


@pytest.mark.parametrize("crowd", [False, True])
def test_no_boxes_keep_the_graph(crowd: bool) -> None:
    """Losses without boxes keep the graph, even if a crowd covers both images, so that no background point is left."""
    image = make_targets([], [])
    if crowd:
        image = replace(image, crowd_boxes=torch.tensor([[0.0, 0.0, 80.0, 48.0]]))
    targets = (image, image)
    predictions = make_predictions(2)
    losses = losses_of(predictions, targets)["losses"]
    assert losses["box"] == losses["quality"] == 0
    assert (losses["class"] == 0) == crowd
    for loss in losses.values():
        loss.backward()
    for prediction in (predictions.embeddings, predictions.boxes, predictions.quality):
        assert prediction.grad is not None
        assert prediction.grad.isfinite().all()


def test_ignored_points_get_no_gradient() -> None:
    targets = (make_targets([[4.0, 4.0, 30.0, 24.0]], [5]), make_targets([], []))
    predictions = make_predictions(2)
    result = losses_of(predictions, targets)
    sum(result["losses"].values()).backward()
    assert predictions.embeddings.grad is not None
    touched = (predictions.embeddings.grad != 0).any(dim=2)
    assert torch.equal(touched, ~result["assignment"].ignored)


@pytest.mark.parametrize("missing", [4, 21], ids=["between", "after all"])
def test_boxes_of_a_class_without_a_row_teach_the_box_and_the_quality_but_no_name(missing: int) -> None:
    boxes = [[4.0, 4.0, 30.0, 24.0], [40.0, 10.0, 75.0, 45.0]]
    named_targets, targets = (
        (make_targets(boxes, [first, 3]), make_targets([[10.0, 10.0, 50.0, 40.0]], [first])) for first in (8, missing)
    )
    named, nameless = make_predictions(2), make_predictions(2)
    expected, found = losses_of(named, named_targets), losses_of(nameless, targets)
    matched = expected["assignment"].matched
    assert torch.equal(found["assignment"].matched, matched)
    without_name = (matched == 0) | ((matched >= 0) & torch.tensor([[False], [True]]))
    assert without_name.any(dim=1).all()
    assert torch.equal(found["normalizers"], expected["normalizers"])
    for name in ("box", "quality"):
        assert torch.equal(found["losses"][name], expected["losses"][name])
    assert found["losses"]["class"] < expected["losses"]["class"]
    sum(expected["losses"].values()).backward()
    sum(found["losses"].values()).backward()
    for name in ("boxes", "quality"):
        assert torch.equal(getattr(nameless, name).grad, getattr(named, name).grad)
    assert named.embeddings.grad is not None
    assert nameless.embeddings.grad is not None
    assert (nameless.embeddings.grad[without_name] == 0).all()
    assert (named.embeddings.grad[without_name] != 0).any(dim=1).all()
    torch.testing.assert_close(nameless.embeddings.grad[~without_name], named.embeddings.grad[~without_name])
    assert ((matched >= 0) & ~without_name).any()


def test_no_box_of_a_class_with_a_row_keeps_the_graph() -> None:
    predictions = make_predictions(1)
    losses = losses_of(predictions, (make_targets([[4.0, 4.0, 30.0, 24.0]], [99]),))["losses"]
    sum(losses.values()).backward()
    for prediction in (predictions.embeddings, predictions.boxes, predictions.quality):
        assert prediction.grad is not None
        assert prediction.grad.isfinite().all()
        assert (prediction.grad != 0).any()


def test_quality_learns_from_matched_points_and_those_of_the_unmatched_center_alone() -> None:
    predictions = make_predictions(1)
    fine = make_points()
    points = Points(fine.centers, torch.where(torch.arange(60) % 2 == 0, 8.0, 32.0))  # every other point is coarse
    targets = (make_targets([[10.0, 10.0, 50.0, 40.0]], [20]),)
    assignment = assign_fcos(points, targets, sizes=torch.tensor([[48, 80]]))
    text, every_class = torch.nn.functional.normalize(torch.randn(4, 16), dim=1), torch.ones(1, 4, dtype=torch.bool)
    losses = detection_losses(
        predictions,
        assignment,
        match_points(assignment, targets, no_box_loss=torch.zeros(1, dtype=torch.bool), points=points),
        classifier=TextClassifier(text, CLASS_IDS, torch.tensor(10.0), torch.tensor(-2.0)),
        masks=ClassMasks(every_class, every_class),
        normalizers=torch.ones(3),
    )
    losses["quality"].backward()
    assert predictions.quality.grad is not None
    taught = predictions.quality.grad[0] != 0
    assert torch.equal(taught, (assignment.matched[0] >= 0) | assignment.unmatched_center[0])
    assert (predictions.quality.grad[0][assignment.unmatched_center[0]] > 0).all()  # their quality is pushed down
    assert assignment.unmatched_center.any()


def two_levels() -> Points:
    """Make the same centers with every second one of a coarser level, so that some points in a box's middle are not
    matched."""
    fine = make_points()
    return Points(fine.centers, torch.where(torch.arange(60) % 2 == 0, 8.0, 32.0))


SIZES_OF_MATCHING = torch.tensor([[48, 80]])


def test_matched_points_weigh_by_their_alignment_where_there_is_one() -> None:
    targets = (make_targets([[4.0, 4.0, 30.0, 24.0]], [8]),)
    assignment = assign_fcos(make_points(), targets, sizes=SIZES_OF_MATCHING)
    alignment = torch.rand(assignment.matched.shape, generator=torch.Generator().manual_seed(0))
    assignment = replace(assignment, alignment=alignment)
    matched_points = match_points(assignment, targets, no_box_loss=None, points=make_points())
    assert torch.equal(matched_points.weights, alignment[assignment.matched >= 0])
    both = Assignment.cat([assignment, replace(assignment, alignment=alignment.flip(1))])
    second = match_points(both, targets * 2, no_box_loss=torch.tensor([True, False]), points=make_points())
    assert torch.equal(second.weights, alignment.flip(1)[assignment.matched >= 0])


def test_unmatched_centers_count_for_the_quality_alone_outside_crowds_and_where_boxes_do() -> None:
    points, targets = two_levels(), make_targets([[10.0, 10.0, 50.0, 40.0]], [20])
    assignment = assign_fcos(points, (targets,), sizes=SIZES_OF_MATCHING)
    assert assignment.unmatched_center.any()
    matched_points = match_points(assignment, (targets,), no_box_loss=None, points=points)
    num_centers = (assignment.unmatched_center & ~assignment.ignored).sum()
    assert matched_points.normalizers()[2] == (assignment.matched >= 0).sum() + num_centers
    none = match_points(assignment, (targets,), no_box_loss=torch.tensor([True]), points=points)
    assert len(none.center_rows) == 0
    crowded = replace(targets, crowd_boxes=torch.tensor([[0.0, 0, 30, 48]]))
    assignment = assign_fcos(points, (crowded,), sizes=SIZES_OF_MATCHING)
    assert (assignment.unmatched_center & assignment.ignored).any()
    matched_points = match_points(assignment, (crowded,), no_box_loss=None, points=points)
    assert not assignment.ignored.flatten()[matched_points.center_rows].any()


def test_the_rougher_form_of_the_loss_is_finite_at_large_logits() -> None:
    logits = torch.tensor([100.0, 200.0])
    slopes, losses = _background_focal_(logits, [torch.empty(2), torch.empty(2)], 1.0)
    assert slopes.isfinite().all()
    assert losses.isfinite().all()


def test_box_and_quality_losses_of_low_precision_predictions_are_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    true_boxes = torch.tensor([[3.0, 5.0, 211.0, 97.0], [40.0, 10.0, 75.0, 45.0]])
    boxes = (true_boxes + torch.randn(2, 4, generator=generator)).bfloat16()
    quality, others = torch.randn(2, 2, generator=generator).bfloat16()
    weights = torch.tensor([0.7, 0.2])
    found, expected = (
        box_and_quality_losses(
            boxes.to(dtype), quality.to(dtype), true_boxes=true_boxes, weights=weights,
            unmatched_center_quality=others.to(dtype),
        )
        for dtype in (torch.bfloat16, torch.float32)
    )  # fmt: skip
    for loss, in_float32 in zip(found, expected, strict=True):
        assert loss.dtype == torch.float32
        assert torch.equal(loss, in_float32)


def test_the_box_loss_of_a_single_point_is_its_whole_giou_loss() -> None:
    predictions, true_box = make_predictions(1), torch.tensor([9.0, 9.0, 14.0, 15.0])
    result = losses_of(predictions, (make_targets([true_box.tolist()], [8]),))
    (point,) = (result["assignment"].matched[0] == 0).nonzero()[:, 0].tolist()
    assert result["normalizers"][1] < 1
    expected = generalized_box_iou_loss(predictions.boxes[0, point], true_box)
    torch.testing.assert_close(result["losses"]["box"], expected)
