"""The three assignments of points to boxes against plain loops, torchvision, and hand-computed cases."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOS
from torchvision.ops import box_iou

from ovd.boxes import side_distances
from ovd.model.assign import assign, assign_atss, assign_fcos, assign_task_aligned
from ovd.model.similarity import TextClassifier, text_cosines
from ovd.structures import Assignment, Points, Predictions, Targets

STRIDES = (8, 16, 32, 64, 128)


def make_points(height: int, width: int, strides: tuple[int, ...] = STRIDES) -> Points:
    centers, stride_of = [], []
    for stride in strides:
        for row in range(math.ceil(height / stride)):
            for column in range(math.ceil(width / stride)):
                centers.append([(column + 0.5) * stride, (row + 0.5) * stride])
                stride_of.append(float(stride))
    return Points(torch.tensor(centers), torch.tensor(stride_of))


def make_targets(boxes: list[list[float]], crowd_boxes: list[list[float]] | None = None) -> Targets:
    return replace(
        Targets.empty(),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        classes=torch.zeros(len(boxes), dtype=torch.int64),
        crowd_boxes=torch.tensor(crowd_boxes or [], dtype=torch.float32).reshape(-1, 4),
    )


# FCOS's own limits of max(l, t, r, b), by stride.
LIMITS = {8: (0, 64), 16: (64, 128), 32: (128, 256), 64: (256, 512), 128: (512, math.inf)}


def reference(points: Points, targets: Targets, size: tuple[int, int], radius: float) -> tuple[list[int], list[bool]]:
    matched, ignored = [], []
    for (x, y), stride in zip(points.centers.tolist(), points.strides.tolist(), strict=True):
        best, best_area = -1, math.inf
        outside = y >= size[0] or x >= size[1]
        for row, (x0, y0, x1, y1) in enumerate(targets.boxes.tolist()):
            low, high = LIMITS[int(stride)]
            inside = x0 < x < x1 and y0 < y < y1
            central = abs(x - (x0 + x1) / 2) < radius * stride and abs(y - (y0 + y1) / 2) < radius * stride
            in_range = low < max(x - x0, y - y0, x1 - x, y1 - y) <= high
            area = (x1 - x0) * (y1 - y0)
            if inside and central and in_range and not outside and area < best_area:
                best, best_area = row, area
        crowd = any(x0 < x < x1 and y0 < y < y1 for x0, y0, x1, y1 in targets.crowd_boxes.tolist())
        matched.append(best)
        ignored.append(outside or (crowd and best < 0))
    return matched, ignored


@st.composite
def box_lists(draw, max_size: int = 5) -> list[list[float]]:
    # Coordinates are quarter pixels, so that float32 and Python's float64 agree on every comparison.
    quarters = st.integers(0, 4 * 1200)
    boxes = []
    for _ in range(draw(st.integers(0, max_size))):
        x, y = draw(quarters) / 4, draw(quarters) / 4
        boxes.append([x, y, x + draw(st.integers(1, 4 * 900)) / 4, y + draw(st.integers(1, 4 * 900)) / 4])
    return boxes


@settings(max_examples=25, deadline=None)
@given(
    boxes=box_lists(),
    crowds=box_lists(2),
    size=st.tuples(st.integers(1, 384), st.integers(1, 640)),
)
def test_equals_plain_loops(boxes: list[list[float]], crowds: list[list[float]], size: tuple[int, int]) -> None:
    points, targets = make_points(384, 640), make_targets(boxes, crowds)
    assignment = assign_fcos(points, (targets,), sizes=torch.tensor([size]))
    matched, ignored = reference(points, targets, size, radius=1.5)
    assert assignment.matched[0].tolist() == matched
    assert assignment.ignored[0].tolist() == ignored
    assert not (assignment.ignored & (assignment.matched >= 0)).any()


def test_equals_torchvision() -> None:
    class Head(nn.Module):
        """A stand-in for FCOS's head that returns the matches it is given."""

        def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
            return matched_idxs

    height, width = 512, 768
    points = make_points(height, width)
    half = points.strides[:, None] / 2
    anchors = torch.cat([points.centers - half, points.centers + half], dim=1)
    per_level = [int((points.strides == s).sum()) for s in STRIDES]
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 40, 2, generator=generator) * torch.tensor([width, height])
    # Boxes are off the grid, so that no distance equals a limit, since torchvision's ranges are open at both ends.
    boxes = torch.cat([corners.amin(0), corners.amax(0)], dim=1) + 0.123
    torchvision_fcos = FCOS.__new__(FCOS)
    nn.Module.__init__(torchvision_fcos)
    torchvision_fcos.center_sampling_radius = 1.5
    torchvision_fcos.head = Head()
    (expected,) = torchvision_fcos.compute_loss([{"boxes": boxes}], {}, [anchors], per_level)

    assignment = assign_fcos(points, (make_targets(boxes.tolist()),), sizes=torch.tensor([[height, width]]))
    assert torch.equal(assignment.matched[0], expected)
    assert len(expected.unique()) > 10


def test_no_boxes_and_a_batch_of_different_images() -> None:
    points = make_points(128, 256)
    with_box, without = make_targets([[20, 20, 60, 70]]), make_targets([])
    assignment = assign_fcos(points, (with_box, without), sizes=torch.tensor([[128, 256], [100, 150]]))
    assert (assignment.matched[1] == -1).all()
    padding = (points.centers[:, 0] >= 150) | (points.centers[:, 1] >= 100)
    assert torch.equal(assignment.ignored[1], padding)
    assert (assignment.matched[0] == 0).any()
    assert not assignment.ignored[0].any()


@pytest.mark.parametrize("pairs_at_a_time", [1, 2 * 2 * 171, 3 * 2 * 171])
def test_images_of_a_batch_are_matched_alike_however_many_at_a_time(monkeypatch, pairs_at_a_time: int) -> None:
    points, sizes = make_points(64, 128), torch.tensor([[64, 128], [40, 100], [64, 64], [50, 128], [64, 90]])
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(5, 2, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 10 + 50 * torch.rand(5, 2, 2, generator=generator)], dim=2).tolist()
    targets = tuple(make_targets(boxes[row][: row % 3], boxes[row][:1]) for row in range(5))
    monkeypatch.setattr("ovd.model.assign.MAX_PAIRS_PER_CHUNK", pairs_at_a_time)
    found = assign_fcos(points, targets, sizes=sizes)
    assert found.matched.shape == (5, len(points.centers))
    for row, (target, size) in enumerate(zip(targets, sizes.tolist(), strict=True)):
        matched, ignored = reference(points, target, tuple(size), radius=1.5)
        assert found.matched[row].tolist() == matched
        assert found.ignored[row].tolist() == ignored


@pytest.mark.parametrize("num_boxes", [0, 1, 6])
def test_boxes_and_crowd_regions_both_limit_the_images_at_a_time(monkeypatch, num_boxes: int) -> None:
    points, sizes, box = make_points(64, 128), torch.tensor([[64, 128]] * 5), [8.0, 8.0, 40.0, 40.0]
    targets = (make_targets([box] * num_boxes, [box] * (6 - num_boxes)), *[make_targets([])] * 4)
    most_pairs = 2 * 6 * len(points.centers)
    num_pairs = []

    def record(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        distances = side_distances(points, boxes)
        num_pairs.append(distances.shape[:-1].numel())
        return distances

    monkeypatch.setattr("ovd.model.assign.MAX_PAIRS_PER_CHUNK", most_pairs)
    monkeypatch.setattr("ovd.model.assign.side_distances", record)
    assign_fcos(points, targets, sizes=sizes)
    assert 0 < max(num_pairs) <= most_pairs


@pytest.mark.parametrize(("box", "expected"), [([3.0, 3.0, 5.0, 5.0], 1), ([9.0, 9.0, 11.0, 11.0], 0)])
def test_box_smaller_than_a_stride(box: list[float], expected: int) -> None:
    """A box smaller than a stride is matched only if a point happens to lie inside; the finest level's points are at 4,
    12, 20 ..."""
    assignment = assign_fcos(make_points(64, 96), (make_targets([box]),), sizes=torch.tensor([[64, 96]]))
    assert (assignment.matched == 0).sum() == expected


@pytest.mark.parametrize(("right", "level"), [(64.0, 0), (64.25, 1), (128.0, 1), (128.25, 2), (512.0, 2)])
def test_the_limits_belong_to_the_finer_level(right: float, level: int) -> None:
    points = Points(torch.full((3, 2), 600.0), torch.tensor([8.0, 16.0, 32.0]))
    targets = make_targets([[600 - right + 8, 590, 600 + right, 610]])
    assignment = assign_fcos(points, (targets,), sizes=torch.tensor([[800, 1200]]))
    assert (assignment.matched[0] == 0).nonzero().tolist() == [[level]]


@pytest.mark.parametrize(("offset", "central"), [(11.75, True), (12.0, False), (-12.0, False)])
def test_central_is_less_than_the_radius(offset: float, central: bool) -> None:
    points = Points(torch.full((1, 2), 100.0), torch.tensor([8.0]))
    targets = make_targets([[90, 80 + offset, 110, 120 + offset]])
    assignment = assign_fcos(points, (targets,), sizes=torch.tensor([[200, 300]]))
    assert (assignment.matched == 0).item() == central


def test_smallest_box_wins_then_the_first() -> None:
    boxes = [[0.0, 0.0, 60.0, 60.0], [20.0, 20.0, 44.0, 44.0], [20.0, 20.0, 44.0, 44.0]]
    points = make_points(64, 64, (8,))
    assignment = assign_fcos(points, (make_targets(boxes),), sizes=torch.tensor([[64, 64]]))
    (at_center,) = (points.centers == torch.tensor([28.0, 28.0])).all(1).nonzero()
    assert assignment.matched[0, at_center] == 1
    assert 2 not in assignment.matched


def test_crowd_spares_matched_points() -> None:
    points = make_points(64, 64, (8,))
    targets = make_targets([[20.0, 20.0, 44.0, 44.0]], [[0.0, 0.0, 64.0, 40.0]])
    assignment = assign_fcos(points, (targets,), sizes=torch.tensor([[64, 64]]))
    in_crowd = points.centers[:, 1] < 40
    assert torch.equal(assignment.ignored[0], in_crowd & (assignment.matched[0] < 0))
    assert (in_crowd & (assignment.matched[0] == 0)).any()


def test_points_on_a_box_of_another_level_are_told_so() -> None:
    """Points inside a box of another level are marked: a 40 px box belongs to P3, so the P4 and P5 points in its center
    are of the wrong level, but those on empty background are not."""
    points = make_points(192, 192)
    assignment = assign_fcos(points, (make_targets([[76.0, 76.0, 116.0, 116.0]]),), sizes=torch.tensor([[192, 192]]))
    inside = ((points.centers > 76) & (points.centers < 116)).all(dim=1)
    wrong = assignment.unmatched_center[0]
    assert not (wrong & (assignment.matched[0] >= 0)).any()
    assert not (wrong & ~inside).any()
    for stride in (16, 32, 64):
        of_level = points.strides == stride
        assert torch.equal(wrong[of_level], inside[of_level])
    assert not wrong[points.strides == 8].any()


def test_padding_is_never_of_the_unmatched_center() -> None:
    points = make_points(64, 64)
    assignment = assign_fcos(points, (make_targets([[0.0, 0.0, 64.0, 64.0]]),), sizes=torch.tensor([[20, 20]]))
    assert not (assignment.unmatched_center[0] & (points.centers >= 20).any(dim=1)).any()


def atss_reference(points: Points, targets: Targets, size: tuple[int, int]) -> list[int]:
    """Assign points by section 4 of the ATSS paper, box by box and point by point."""
    centers, strides = points.centers.tolist(), points.strides.tolist()
    inside_image = [y < size[0] and x < size[1] for x, y in centers]
    overlap_of = [-1.0] * len(centers)
    matched = [-1] * len(centers)
    for row, box in enumerate(targets.boxes.tolist()):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates = []
        for stride in STRIDES:
            level = [p for p in range(len(centers)) if strides[p] == stride]
            level.sort(key=lambda p: (not inside_image[p], math.dist(centers[p], middle)))
            candidates += [p for p in level[:9] if inside_image[p]]
        overlaps = {}
        for p in candidates:
            x, y = centers[p]
            anchor = torch.tensor([[x - 4 * strides[p], y - 4 * strides[p], x + 4 * strides[p], y + 4 * strides[p]]])
            overlaps[p] = box_iou(anchor, torch.tensor([box])).item()
        values = torch.tensor(list(overlaps.values()))
        limit = values.mean() + (values.std() if len(values) > 1 else 0)
        for p, overlap in overlaps.items():
            x, y = centers[p]
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if inside and overlap >= limit and overlap > overlap_of[p]:
                matched[p], overlap_of[p] = row, overlap
    return matched


@pytest.mark.parametrize("seed", range(6))
def test_atss_equals_a_loop_over_boxes_and_points(seed):
    generator = torch.Generator().manual_seed(seed)
    size = [(128, 192), (200, 130), (96, 96)][seed % 3]
    points = make_points(-(-size[0] // 32) * 32 + 32, -(-size[1] // 32) * 32)
    corner = torch.rand(seed, 2, generator=generator) * torch.tensor([size[1], size[0]]) * 0.7
    sides = 9 + torch.rand(seed, 2, generator=generator) * 90
    targets = make_targets(torch.cat([corner, corner + sides], dim=1).tolist())
    assignment = assign_atss(points, (targets,), sizes=torch.tensor([size]))
    assert assignment.matched[0].tolist() == atss_reference(points, targets, size)
    padding = (points.centers >= torch.tensor([size[1], size[0]])).any(1)
    assert torch.equal(assignment.ignored[0], padding)
    assert not (assignment.unmatched_center & (assignment.matched >= 0)).any()


def test_atss_does_not_depend_on_the_padding_of_the_batch():
    rng = torch.Generator().manual_seed(0)
    for _ in range(60):
        height, width = (int(side) for side in torch.randint(40, 200, (2,), generator=rng))
        corners = torch.rand(4, 2, 2, generator=rng) * torch.tensor([width, height])
        boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 2], dim=1).round().tolist()
        sizes = torch.tensor([[height, width]])
        found = []
        for more in (0, 96):
            points = make_points(height + more, width + more)
            matched = assign_atss(points, (make_targets(boxes),), sizes=sizes).matched[0]
            inside = ((points.centers[:, 1] < height) & (points.centers[:, 0] < width)).tolist()
            rows = zip(points.strides.tolist(), points.centers.tolist(), matched.tolist(), inside, strict=True)
            found.append([(stride, center, match) for stride, center, match, is_inside in rows if is_inside])
        assert found[0] == found[1]


def test_atss_with_crowds_no_boxes_and_a_batch():
    points = make_points(64, 96)
    some, none = make_targets([[4, 4, 40, 50]], [[60, 0, 96, 64]]), make_targets([])
    sizes = torch.tensor([[64, 96], [64, 96]])
    both = assign_atss(points, (some, none), sizes=sizes)
    assert (both.matched[1] == -1).all()
    alone = assign_atss(points, (some,), sizes=sizes[:1])
    assert torch.equal(both.matched[0], alone.matched[0])
    assert (alone.matched[0] == 0).any()
    assert alone.ignored[0].any()
    assert not alone.ignored[0][alone.matched[0] >= 0].any()


@pytest.mark.parametrize("seed", range(4))
def test_task_aligned_equals_a_loop_over_boxes_and_points(seed):
    generator = torch.Generator().manual_seed(seed)
    points, size = make_points(96, 128), (90, 110)
    num_points = len(points.centers)
    corner = torch.rand(seed, 2, generator=generator) * torch.tensor([60.0, 50.0])
    boxes = torch.cat([corner, corner + 12 + 50 * torch.rand(seed, 2, generator=generator)], dim=1)
    targets = make_targets(boxes.tolist())
    targets = replace(targets, classes=torch.randint(0, 3, (seed,), generator=generator) * 4)
    reach = 4 + 40 * torch.rand(1, num_points, 2, generator=generator)
    predictions = Predictions(
        torch.randn(1, num_points, 8, generator=generator),
        torch.cat([points.centers - reach, points.centers + reach], dim=2),
        torch.zeros(1, num_points),
    )
    text, scale, bias = (
        F.normalize(torch.randn(3, 8, generator=generator), dim=1),
        torch.tensor(5.0),
        torch.tensor(-1.0),
    )
    classifier = TextClassifier(text, torch.tensor([0, 4, 8]), scale, bias)
    found = assign_task_aligned(points, (targets,), predictions, sizes=torch.tensor([size]), classifier=classifier)
    probability = (scale * text_cosines(predictions.embeddings[0], text) + bias).sigmoid()
    overlap = box_iou(predictions.boxes[0], targets.boxes)
    wanted: dict[int, list[int]] = {}
    score = torch.zeros(num_points, seed)
    for row in range(seed):
        x0, y0, x1, y1 = targets.boxes[row].tolist()
        for p, (x, y) in enumerate(points.centers.tolist()):
            if x0 < x < x1 and y0 < y < y1 and x < size[1] and y < size[0]:
                score[p, row] = probability[p, targets.classes[row] // 4] * overlap[p, row] ** 6
        for p in sorted(range(num_points), key=lambda p: -score[p, row].item())[:13]:
            if score[p, row] > 0:
                wanted.setdefault(p, []).append(row)
    matched = [max(wanted[p], key=lambda row: overlap[p, row].item()) if p in wanted else -1 for p in range(num_points)]
    assert found.matched[0].tolist() == matched
    assert found.alignment is not None
    for row in range(seed):
        own = [p for p in range(num_points) if matched[p] == row]
        best = max((score[p, row].item() for p in own), default=0.0)
        most = max((overlap[p, row].item() for p in own), default=0.0)
        for p in own:
            assert found.alignment[0, p].item() == pytest.approx(score[p, row].item() / best * most, rel=1e-4)
    assert (found.alignment[0][found.matched[0] < 0] == 0).all()


@pytest.mark.parametrize("classes", [[4, 7], [7, 7]], ids=["one without a row", "none with a row"])
def test_task_aligned_matches_a_box_of_a_class_without_a_row_by_its_overlap_alone(classes):
    generator = torch.Generator().manual_seed(0)
    points = make_points(96, 128)
    targets = make_targets([[4, 4, 50, 44], [70, 30, 120, 90]])  # the boxes are far apart
    targets = replace(targets, classes=torch.tensor(classes))
    reach = 8 + 24 * torch.rand(1, len(points.centers), 2, generator=generator)
    predictions = Predictions(
        torch.randn(1, len(points.centers), 8, generator=generator),
        torch.cat([points.centers - reach, points.centers + reach], dim=2),
        torch.zeros(1, len(points.centers)),
    )
    text = F.normalize(torch.randn(2, 8, generator=generator), dim=1)
    classifier = TextClassifier(text, torch.tensor([0, 4]), torch.tensor(5.0), torch.tensor(-1.0))
    sizes = torch.tensor([[96, 128]])
    found = assign_task_aligned(points, (targets,), predictions, sizes=sizes, classifier=classifier)
    assert found.alignment is not None
    overlap = box_iou(predictions.boxes[0], targets.boxes)
    for row in [row for row, of_class in enumerate(classes) if of_class == 7]:
        x0, y0, x1, y1 = targets.boxes[row].tolist()
        inside = [p for p, (x, y) in enumerate(points.centers.tolist()) if x0 < x < x1 and y0 < y < y1]
        best = sorted((p for p in inside if overlap[p, row] > 0), key=lambda p: -overlap[p, row].item())[:13]
        assert (found.matched[0] == row).nonzero()[:, 0].tolist() == sorted(best)
        highest = overlap[best[0], row].item()
        for p in best:
            expected = (overlap[p, row].item() / highest) ** 6 * highest
            assert found.alignment[0, p].item() == pytest.approx(expected, rel=1e-4)
    if classes[0] == 4:
        alone = replace(targets, boxes=targets.boxes[:1], classes=targets.classes[:1])
        expected = assign_task_aligned(points, (alone,), predictions, sizes=sizes, classifier=classifier)
        assert torch.equal(found.matched[0] == 0, expected.matched[0] == 0)
        assert (expected.matched == 0).any()


def test_rules_are_found_by_name_and_those_that_look_at_annotations_alone_need_no_predictions():
    points = make_points(64, 96)
    targets = (make_targets([[4, 4, 90, 30], [10, 2, 40, 60]], [[60, 0, 96, 64]]), make_targets([]))
    sizes = torch.tensor([[64, 96], [60, 90]])
    fcos, atss = (assign(rule, points, targets, sizes=sizes) for rule in ("fcos", "atss"))
    assert fcos is not None
    assert atss is not None
    for found, expected in (
        (fcos, assign_fcos(points, targets, sizes=sizes)),
        (atss, assign_atss(points, targets, sizes=sizes)),
    ):
        assert torch.equal(found.matched, expected.matched)
        assert torch.equal(found.ignored, expected.ignored)
        assert torch.equal(found.unmatched_center, expected.unmatched_center)
    assert not torch.equal(fcos.matched, atss.matched)
    assert assign("task_aligned", points, targets, sizes=sizes) is None
    num_points, generator = len(points.centers), torch.Generator().manual_seed(0)
    predicted = torch.cat([points.centers - 20, points.centers + 20], dim=1).expand(2, -1, -1)
    predictions = Predictions(torch.randn(2, num_points, 8, generator=generator), predicted, torch.zeros(2, num_points))
    text = F.normalize(torch.randn(1, 8, generator=generator), dim=1)
    classifier = TextClassifier(text, torch.tensor([0]), torch.tensor(5.0), torch.tensor(-1.0))
    aligned = assign("task_aligned", points, targets, sizes=sizes, predictions=predictions, classifier=classifier)
    assert aligned is not None
    expected = assign_task_aligned(points, targets, predictions, sizes=sizes, classifier=classifier)
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(aligned, name), tensor), name
    assert aligned.alignment is not None
    assert (aligned.matched >= 0).any()


def task_aligned(boxes: list[list[float]], reach: float) -> tuple[Points, Targets, Assignment]:
    """Compute the task-aligned assignment for boxes predicted `reach` px around every point."""
    points, targets = make_points(96, 128), make_targets(boxes)
    generator = torch.Generator().manual_seed(0)
    predicted = torch.cat([points.centers - reach, points.centers + reach], dim=1)[None]
    num_points = len(points.centers)
    predictions = Predictions(torch.randn(1, num_points, 8, generator=generator), predicted, torch.zeros(1, num_points))
    text = F.normalize(torch.randn(1, 8, generator=generator), dim=1)
    classifier = TextClassifier(text, torch.tensor([0]), torch.tensor(5.0), torch.tensor(-1.0))
    sizes = torch.tensor([[96, 128]])
    return points, targets, assign_task_aligned(points, (targets,), predictions, sizes=sizes, classifier=classifier)


def test_task_aligned_takes_no_point_outside_a_box_with_few_inside() -> None:
    points, targets, assignment = task_aligned([[10.0, 10, 22, 22]], 8.0)
    matched = points.centers[assignment.matched[0] >= 0]
    assert len(matched)
    assert (side_distances(matched, targets.boxes.expand(len(matched), 4)) > 0).all()


def test_task_aligned_survives_a_box_without_a_point_and_one_that_is_hardly_met() -> None:
    _, _, assignment = task_aligned([[4.0, 4, 50, 44], [61.0, 61, 62, 62]], 8.0)
    assert (assignment.matched == 0).any()
    assert not (assignment.matched == 1).any()
    assert assignment.alignment is not None
    assert assignment.alignment.isfinite().all()
    points, targets, hardly = task_aligned([[4.0, 4, 90, 90]], 4.0)
    assert hardly.alignment is not None
    around = torch.cat([points.centers - 4, points.centers + 4], dim=1)
    best = box_iou(around[hardly.matched[0] >= 0], targets.boxes).max()
    assert best < 0.01
    torch.testing.assert_close(hardly.alignment.max(), best)


def test_task_aligned_knows_the_unmatched_points_in_the_middle_of_a_box() -> None:
    points, targets, assignment = task_aligned([[4.0, 4, 92, 92]], 8.0)
    offsets = (points.centers - 48).abs().amax(dim=1)
    distances = side_distances(points.centers, targets.boxes.expand(len(points.centers), 4))
    central = (distances > 0).all(dim=1) & (offsets < 1.5 * points.strides)
    assert torch.equal(assignment.unmatched_center[0], central & (assignment.matched[0] < 0))


def test_alignments_are_targets_that_nothing_is_learned_through() -> None:
    points = make_points(64, 96)
    centers = points.centers[None]
    predictions = Predictions(
        torch.randn(1, len(points.centers), 8, requires_grad=True),
        torch.cat([centers - 20, centers + 20], dim=2).requires_grad_(),
        torch.zeros(1, len(points.centers)),
    )
    classifier = TextClassifier(
        torch.eye(8)[:1], torch.tensor([0]), torch.tensor(5.0, requires_grad=True), torch.zeros(())
    )
    targets = (make_targets([[4, 4, 90, 60]]),)
    found = assign_task_aligned(points, targets, predictions, sizes=torch.tensor([[64, 96]]), classifier=classifier)
    assert found.alignment is not None
    assert found.alignment.any()
    assert not found.alignment.requires_grad
