"""Decisions and calibration against plain loops over images, classes and boxes."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovd.choices import Frequency
from ovd.data.category import Category
from ovd.data.truth import Truth, TruthImage
from ovd.evaluation.decisions import MIN_DECISION_SCORE, DecisionEvaluator
from ovd.evaluation.results import Results

NUM_IMAGES, NUM_CLASSES = 24, 5
COCO_IOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


FREQUENCIES: tuple[Frequency, ...] = ("r", "c", "f")


def make_truth(seed: int = 0, *, federated: bool = False) -> Truth:
    """Make a truth with gaps in its image and category ids, and one image without a box.

    In an exhaustive truth, some boxes are crowds, with and without an object of their class beside them. In a federated
    one, some classes with boxes are not exhaustive, and one without; one is listed as absent but has a box.
    """
    rng = np.random.default_rng(seed)
    images, classes, boxes = [], [], []
    for image in range(NUM_IMAGES - 1):
        for _ in range(int(rng.integers(0, 4))):
            images.append(10 * image + 3)
            classes.append(2 * int(rng.integers(NUM_CLASSES)) + 1)
            boxes.append([*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)])
        if image == 4:  # a second object of the class in this image
            images.append(images[-1])
            classes.append(classes[-1])
            boxes.append([*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)])
    crowd = np.zeros(len(images), bool)
    crowd[[2, images.index(43), 12]] = not federated
    negatives = [tuple({2 * int(c) + 1 for c in rng.integers(0, NUM_CLASSES, 2)}) for _ in range(NUM_IMAGES)]
    incomplete: list[tuple[int, ...]] = [()] * NUM_IMAGES
    if federated:
        for row in (0, 5, 9):
            incomplete[images[row] // 10] = (classes[row],)
        incomplete[NUM_IMAGES - 1] = (3,)
    return Truth(
        path=Path("truth.json"),
        is_federated=federated,
        images=tuple(
            TruthImage(10 * row + 3, negatives[row] if federated else (), incomplete[row]) for row in range(NUM_IMAGES)
        ),
        categories=tuple(
            Category(2 * row + 1, f"class {row}", (), FREQUENCIES[row % 3], 1) for row in range(NUM_CLASSES)
        ),
        image_ids=np.array(images),
        category_ids=np.array(classes),
        boxes_xywh=np.array(boxes),
        areas_px=np.array(boxes)[:, 2:].prod(axis=1),
        crowd=crowd,
        num_without_area=0,
    )


def make_results(truth: Truth, seed: int = 1) -> Results:
    """Make detections around true boxes, of the right class or another, and at random places."""
    rng = np.random.default_rng(seed)
    images, classes, boxes, scores = [], [], [], []
    for image, category, box in zip(truth.image_ids, truth.category_ids, truth.boxes_xywh, strict=True):
        for _ in range(int(rng.integers(0, 4))):
            images.append(image)
            classes.append(category if rng.random() < 0.7 else 2 * rng.integers(NUM_CLASSES) + 1)
            boxes.append(box + rng.normal(0, 3, 4))
            scores.append(rng.uniform(0.02, 1))
    for _ in range(30):
        images.append(10 * rng.integers(NUM_IMAGES) + 3)
        classes.append(2 * rng.integers(NUM_CLASSES) + 1)
        boxes.append([*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)])
        scores.append(rng.uniform(0.02, 0.6))
    arrays = np.array(images, np.int64), np.array(classes, np.int64), np.array(boxes).clip(min=1), np.array(scores)
    return Results(*arrays)


def iou(one, other) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    inside = max(0.0, width) * max(0.0, height)
    return inside / (one[2] * one[3] + other[2] * other[3] - inside)


def matched(boxes: list, true: list, least: float) -> int:
    """Count one-to-one matches; `boxes` are sorted with the best score first."""
    left, count = list(true), 0
    for box in boxes:
        overlaps = [iou(box, other) for other in left]
        if overlaps and max(overlaps) >= least:
            left.pop(int(np.argmax(overlaps)))
            count += 1
    return count


def reference(truth: Truth, results: Results, classes: list[int], thresholds: tuple[float, float]) -> dict[str, float]:
    table, hits, reported, num_true = np.zeros((2, 2)), np.zeros(len(COCO_IOUS)), 0, 0
    for row, image in enumerate(truth.images):
        for class_row in classes:
            category = truth.categories[class_row].id
            of_truth = (truth.image_ids == image.id) & (truth.category_ids == category) & ~truth.crowd
            true = truth.boxes_xywh[of_truth].tolist()
            if truth.is_federated and not true and category not in image.negative_category_ids:
                continue
            in_crowd = ((truth.image_ids == image.id) & (truth.category_ids == category) & truth.crowd).any()
            if in_crowd and not true:
                continue
            chosen = (results.image_ids == image.id) & (results.category_ids == category)
            chosen &= results.scores >= max(thresholds[row % 2], MIN_DECISION_SCORE)
            boxes = [results.boxes_xywh[k].tolist() for k in np.argsort(-results.scores, kind="stable") if chosen[k]]
            table[int(bool(true)), int(bool(boxes))] += 1
            if true and not in_crowd and category not in image.not_exhaustive_category_ids:
                hits += [matched(boxes, true, least) for least in COCO_IOUS]
                reported, num_true = reported + len(boxes), num_true + len(true)
    (tn, fp), (fn, tp) = table
    mcc = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    f1 = 2 * hits / (reported + num_true)
    return {
        "cgF1": 100 * f1[0] * mcc,
        "cgF1_50_95": 100 * float(np.mean(f1)) * mcc,
        "pmF1": f1[0],
        "IL_MCC": mcc,
        "absent_per_image": fp / NUM_IMAGES,
    }


@pytest.mark.parametrize("federated", [False, True])
@pytest.mark.parametrize("classes", [[0, 1, 2, 3, 4], [1, 3]])
def test_decisions_equal_loops(federated, classes):
    truth = make_truth(federated=federated)
    results = make_results(truth)
    evaluator = DecisionEvaluator(truth, results, base=np.ones(NUM_CLASSES, bool))
    mask = np.isin(np.arange(NUM_CLASSES), classes)
    for thresholds in ((0.3, 0.5), (0.0, 0.2)):
        found = vars(evaluator.decide(mask, thresholds))
        assert found == pytest.approx(reference(truth, results, classes, thresholds))


@pytest.mark.parametrize("federated", [False, True])
def test_each_half_is_decided_at_the_threshold_that_is_best_on_the_other(federated):
    truth = make_truth(federated=federated)
    results = make_results(truth)
    base = np.array([True, True, False, True, False])
    evaluator = DecisionEvaluator(truth, results, base=base)
    for_even, for_odd = evaluator.thresholds()
    for half, threshold in ((1, for_even), (0, for_odd)):
        images = np.array([image.id for row, image in enumerate(truth.images) if row % 2 == half])
        part = truth.restrict(images, np.array([category.id for category in truth.categories]))
        own_results = results.take(np.isin(results.image_ids, images))
        own = DecisionEvaluator(part, own_results, base=base)
        tried = np.concatenate([[threshold], own_results.scores, np.linspace(0.05, 0.95, 20)])
        best, *others = (own.decide(base, (one, one)).cgF1 or 0.0 for one in tried.tolist())
        assert best >= max(others) - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_crowded_pairs_are_matched_as_one_after_the_other(seed):
    """Crowded pairs are matched as if one after the other, with many overlapping boxes of one class, some equal, some
    with equal scores."""
    rng = np.random.default_rng(seed)
    truth = make_truth()
    where, count = np.repeat([3, 13], 12), 24
    boxes = np.concatenate([rng.uniform(0, 15, (count, 2)), rng.uniform(15, 25, (count, 2))], axis=1)
    truth = replace(
        truth, image_ids=where, category_ids=np.repeat([1, 3], 12), boxes_xywh=boxes,
        areas_px=boxes[:, 2:].prod(axis=1), crowd=np.zeros(count, bool),
    )  # fmt: skip
    detected = np.concatenate([boxes, boxes[::-1], boxes + rng.normal(0, 2, boxes.shape)]).clip(min=1)
    scores = rng.permutation(np.linspace(0.1, 0.9, len(detected)).round(2))
    results = Results(np.tile(where, 3), np.tile(truth.category_ids, 3), detected, scores)
    evaluator = DecisionEvaluator(truth, results, base=np.ones(NUM_CLASSES, bool))
    for thresholds in ((0.05, 0.05), (0.4, 0.6)):
        found = evaluator.decide(np.ones(NUM_CLASSES, bool), thresholds)
        expected = reference(truth, results, list(range(NUM_CLASSES)), thresholds)
        assert vars(found) == pytest.approx(expected)
        assert found.pmF1 is not None
        assert 0 < found.pmF1 < 1


def test_perfect_detections_and_none():
    truth = make_truth()
    real = ~truth.crowd
    perfect = Results(truth.image_ids[real], truth.category_ids[real], truth.boxes_xywh[real], np.full(real.sum(), 0.9))
    everything = np.ones(NUM_CLASSES, bool)
    found = DecisionEvaluator(truth, perfect, base=everything).decide(everything, (0.5, 0.5))
    assert (found.pmF1, found.IL_MCC, found.absent_per_image) == (1.0, 1.0, 0.0)
    nothing = DecisionEvaluator(truth, perfect.take(np.zeros(real.sum(), bool)), base=everything)
    assert nothing.thresholds() == (MIN_DECISION_SCORE, MIN_DECISION_SCORE)
    assert vars(nothing.decide(everything, (0.5, 0.5))) == dict.fromkeys(vars(found), 0.0)
    assert nothing.reliability(everything).recall == 0


def test_a_truth_without_boxes_or_images():
    truth = make_truth()
    no_boxes = truth.restrict(np.array([image.id for image in truth.images]), np.zeros(0, np.int64))
    no_boxes = replace(no_boxes, categories=truth.categories)
    results = make_results(truth)
    everything = np.ones(NUM_CLASSES, bool)
    evaluator = DecisionEvaluator(no_boxes, results, base=everything)
    found = evaluator.decide(everything, evaluator.thresholds())
    assert (found.cgF1, found.pmF1, found.IL_MCC) == (None, None, None)
    assert evaluator.reliability(everything).recall is None
    kept = results.take(results.scores >= MIN_DECISION_SCORE)
    pairs = set(zip(kept.image_ids.tolist(), kept.category_ids.tolist(), strict=True))
    assert evaluator.decide(everything, (0.0, 0.0)).absent_per_image == pytest.approx(len(pairs) / NUM_IMAGES)
    assert evaluator.reliability(everything).brier == pytest.approx((kept.scores**2).mean())
    empty = DecisionEvaluator(replace(no_boxes, images=()), results.take(np.zeros(0, np.int64)), base=everything)
    assert empty.decide(everything, empty.thresholds()).absent_per_image == 0


@pytest.mark.parametrize("federated", [False, True])
def test_calibration_equals_a_loop_and_sees_overconfidence(federated):
    truth = make_truth(federated=federated)
    results = make_results(truth)
    everything = np.ones(NUM_CLASSES, bool)
    found = DecisionEvaluator(truth, results, base=everything).reliability(everything)
    images = {image.id: image for image in truth.images}

    def counts(image: int, category: int) -> bool:
        own = (truth.image_ids == image) & (truth.category_ids == category)
        known = own.any() or category in images[image].negative_category_ids or not federated
        return known and not truth.crowd[own].any() and category not in images[image].not_exhaustive_category_ids

    counted = [counts(*pair) for pair in zip(results.image_ids.tolist(), results.category_ids.tolist(), strict=True)]
    kept = results.take((results.scores >= MIN_DECISION_SCORE) & np.array(counted))
    right = np.array(
        [
            any(
                iou(box, true) >= 0.5
                for true, of_image, of_class, crowd in zip(
                    truth.boxes_xywh, truth.image_ids, truth.category_ids, truth.crowd, strict=True
                )
                if (of_image, of_class) == (image, category) and not crowd
            )
            for box, image, category in zip(kept.boxes_xywh, kept.image_ids, kept.category_ids, strict=True)
        ]
    )
    order = np.argsort(kept.scores, kind="stable")
    parts = np.array_split(order, 15)
    expected = sum(len(p) / len(order) * abs(kept.scores[p].mean() - right[p].mean()) for p in parts)
    assert found.error == pytest.approx(expected)
    assert found.brier == pytest.approx(np.mean((kept.scores - right) ** 2))
    sure = Results(results.image_ids, results.category_ids, results.boxes_xywh, np.full(len(results), 0.99))
    surely = DecisionEvaluator(truth, sure, base=everything).reliability(everything)
    assert surely.error == pytest.approx(abs(0.99 - surely.outcomes.mean()), abs=0.02)


def test_no_box_is_judged_where_some_are_missing():
    """IL_MCC is known, but no box counts, if each class with boxes has others that were not annotated."""
    truth, everything = make_truth(federated=True), np.ones(NUM_CLASSES, bool)
    present = {image.id: set[int]() for image in truth.images}
    for image, category in zip(truth.image_ids.tolist(), truth.category_ids.tolist(), strict=True):
        present[image].add(category)
    images = tuple(replace(one, not_exhaustive_category_ids=tuple(sorted(present[one.id]))) for one in truth.images)
    evaluator = DecisionEvaluator(replace(truth, images=images), make_results(truth), base=everything)
    found = evaluator.decide(everything, evaluator.thresholds())
    assert (found.cgF1, found.cgF1_50_95, found.pmF1) == (None, None, None)
    assert found.IL_MCC is not None


def every_image_has_one(num_absent: int) -> Truth:
    """Make a truth with a class that has a box in each of 20 images, and `num_absent` images without it."""
    corners = np.tile([10.0, 10.0, 20.0, 20.0], (20, 1))
    return replace(
        make_truth(),
        images=tuple(TruthImage(row, (), ()) for row in range(20 + num_absent)),
        categories=(Category(1, "apple", (), None, 20),),
        image_ids=np.arange(20),
        category_ids=np.ones(20, np.int64),
        boxes_xywh=corners,
        areas_px=np.full(20, 400.0),
        crowd=np.zeros(20, bool),
    )


def test_a_class_in_every_image_has_no_correlation_and_the_threshold_of_the_best_f1():
    rng, everything = np.random.default_rng(0), np.ones(1, bool)
    for num_absent in (0, 2):
        truth = every_image_has_one(num_absent)
        wrong = truth.boxes_xywh + np.array([60.0, 0, 0, 0])
        results = Results(
            np.tile(truth.image_ids, 2), np.tile(truth.category_ids, 2), np.concatenate([truth.boxes_xywh, wrong]),
            np.concatenate([np.full(20, 0.9), rng.uniform(0.06, 0.5, 20)]),
        )  # fmt: skip
        evaluator = DecisionEvaluator(truth, results, base=everything)
        found = evaluator.decide(everything, evaluator.thresholds())
        assert min(evaluator.thresholds()) > 0.4
        assert found.pmF1 is not None
        assert found.pmF1 > 0.9
        assert (found.IL_MCC, found.cgF1) == ((1, 100 * found.pmF1) if num_absent else (None, None))


@pytest.mark.parametrize("percent", range(50, 100, 5))
def test_a_box_at_exactly_an_iou_counts_for_it(percent):
    truth = every_image_has_one(1)
    truth = replace(truth, boxes_xywh=np.tile([0.0, 0.0, 100.0, 100.0], (20, 1)))
    boxes = np.tile([0.0, 0.0, percent, 100.0], (20, 1))
    results = Results(truth.image_ids, truth.category_ids, boxes, np.full(20, 0.9))
    found = DecisionEvaluator(truth, results, base=np.ones(1, bool)).decide(np.ones(1, bool), (0.5, 0.5))
    assert found.cgF1_50_95 == pytest.approx(100 * (1 + (percent - 50) / 5) / 10)


def test_calibration_of_equal_scores_does_not_depend_on_their_order():
    truth = every_image_has_one(0)
    boxes = truth.boxes_xywh + np.where(np.arange(20) < 10, 0.0, 60.0)[:, None] * [1, 0, 0, 0]
    results = Results(truth.image_ids, truth.category_ids, boxes, np.full(20, 0.5))
    assert DecisionEvaluator(truth, results, base=np.ones(1, bool)).reliability(np.ones(1, bool)).error == 0


@pytest.mark.parametrize("federated", [False, True])
def test_no_bit_depends_on_the_order_of_the_images(federated):
    truth = make_truth(federated=federated)
    results = make_results(truth)
    everything, order = np.ones(NUM_CLASSES, bool), np.random.default_rng(0)
    figures = set()
    for _ in range(20):
        of_image = order.permutation(10 * NUM_IMAGES)[results.image_ids]
        shuffled = results.take(np.argsort(of_image, kind="stable"))
        evaluator = DecisionEvaluator(truth, shuffled, base=everything)
        scores = evaluator.reliability(everything)
        decided = evaluator.decide(everything, evaluator.thresholds())
        figures.add(
            (scores.error, scores.brier, scores.recall, *scores.scores, *scores.outcomes, *vars(decided).values())
        )
    assert len(figures) == 1


def test_scores_that_are_no_probabilities_or_none_have_no_calibration():
    truth, everything = every_image_has_one(2), np.ones(1, bool)
    boxes = truth.boxes_xywh + np.where(np.arange(20) < 10, 0.0, 60.0)[:, None] * [1, 0, 0, 0]
    results = Results(truth.image_ids, truth.category_ids, boxes, np.linspace(0.1, 1, 20))
    usual = DecisionEvaluator(truth, results, base=everything)
    for factor in (1.001, 1e160, 1.7e308):
        evaluator = DecisionEvaluator(truth, replace(results, scores=factor * results.scores), base=everything)
        scores = evaluator.reliability(everything)
        assert (scores.error, scores.brier, len(scores.scores), len(scores.outcomes)) == (None, None, 0, 0)
        assert scores.recall == usual.reliability(everything).recall == 0.5
        assert evaluator.decide(everything, evaluator.thresholds()) == usual.decide(everything, usual.thresholds())
    highest = usual.reliability(everything)
    assert highest.error is not None
    assert highest.brier == pytest.approx(((results.scores - (np.arange(20) < 10)) ** 2).mean())
    nothing = DecisionEvaluator(truth, results.take(np.zeros(0, np.int64)), base=everything).reliability(everything)
    assert (nothing.error, nothing.brier, nothing.recall, len(nothing.scores)) == (None, None, 0, 0)


def test_a_detection_at_the_threshold_is_reported():
    """A detection exactly at the threshold is reported, as by `choose_shown`, which detection, labeling and serving
    use."""
    truth, everything = every_image_has_one(1), np.ones(1, bool)
    results = Results(truth.image_ids, truth.category_ids, truth.boxes_xywh, np.full(20, 0.3))
    evaluator = DecisionEvaluator(truth, results, base=everything)
    for threshold, pmF1 in ((0.3, 1), (0.301, 0)):
        assert evaluator.decide(everything, (threshold, threshold)).pmF1 == pmF1
        assert evaluator.verdicts((threshold, threshold)).is_found.all() == bool(pmF1)


def test_a_detection_at_the_floor_takes_part_and_none_below_whatever_the_threshold():
    truth, everything = every_image_has_one(1), np.ones(1, bool)
    scores = np.where(np.arange(20) < 10, MIN_DECISION_SCORE, 0.99 * MIN_DECISION_SCORE)
    results = Results(truth.image_ids, truth.category_ids, truth.boxes_xywh, scores)
    evaluator = DecisionEvaluator(truth, results, base=everything)
    for threshold in (0.0, MIN_DECISION_SCORE):
        verdicts = evaluator.verdicts((threshold, threshold))
        assert verdicts.reported.image_ids.tolist() == list(range(10))
        assert verdicts.is_right.all()
        assert verdicts.is_found.tolist() == [True] * 10 + [False] * 10
        assert evaluator.decide(everything, (threshold, threshold)).pmF1 == pytest.approx(2 / 3)


def test_a_large_set_is_judged_in_seconds():
    rng = np.random.default_rng(0)
    num_images, num_classes, each = 2000, 80, 300
    true_images = np.repeat(np.arange(num_images), 7)
    boxes = np.concatenate([rng.uniform(0, 400, (len(true_images), 2)), rng.uniform(20, 200, (len(true_images), 2))], 1)
    truth = replace(
        make_truth(),
        images=tuple(TruthImage(row, (), ()) for row in range(num_images)),
        categories=tuple(Category(row, f"class {row}", (), None, 1) for row in range(num_classes)),
        image_ids=true_images,
        category_ids=rng.integers(0, num_classes, len(true_images)),
        boxes_xywh=boxes,
        areas_px=boxes[:, 2:].prod(axis=1),
        crowd=np.zeros(len(true_images), bool),
    )
    rows = rng.integers(0, len(true_images), num_images * each)
    results = Results(
        image_ids=true_images[rows],
        category_ids=np.where(
            rng.random(len(rows)) < 0.5, truth.category_ids[rows], rng.integers(0, num_classes, len(rows))
        ),
        boxes_xywh=(boxes[rows] + rng.normal(0, 8, (len(rows), 4))).clip(min=1),
        scores=rng.uniform(0.05, 1, len(rows)),
    )
    everything = np.ones(num_classes, bool)
    start = time.perf_counter()
    evaluator = DecisionEvaluator(truth, results, base=everything)
    evaluator.decide(everything, evaluator.thresholds())
    evaluator.reliability(everything)
    assert time.perf_counter() - start < 20  # takes about 2 s on two idle cores


def test_thresholds_do_not_depend_on_other_classes_than_the_base():
    """The same detections of base classes are reported in the other half, whatever the scores of other classes."""
    truth = make_truth()
    results, base = make_results(truth), np.array([True, True, False, True, False])
    base_ids = [category.id for category, is_base in zip(truth.categories, base, strict=True) if is_base]
    of_base = np.isin(results.category_ids, base_ids)
    half_of = {image.id: row % 2 for row, image in enumerate(truth.images)}
    halves = np.array([half_of[image] for image in results.image_ids.tolist()])
    reported = []
    for others in (results.scores, 1 - results.scores, 0.5 + results.scores / 2):
        scores = np.where(of_base, results.scores, others)
        evaluator = DecisionEvaluator(truth, replace(results, scores=scores), base=base)
        for_even, for_odd = evaluator.thresholds()
        least = np.where(halves == 1, for_even, for_odd)  # each threshold is chosen on the other half
        reported.append((of_base & (scores >= least)).tolist())
    assert reported[0] == reported[1] == reported[2]


def test_recall_counts_every_true_box_that_a_detection_overlaps():
    truth = every_image_has_one(0)
    twice = replace(
        truth, image_ids=np.array([0, 0]), category_ids=np.ones(2, np.int64),
        boxes_xywh=np.array([[10.0, 10, 20, 20], [11.0, 10, 20, 20]]), areas_px=np.full(2, 400.0),
        crowd=np.zeros(2, bool),
    )  # fmt: skip
    results = Results(np.array([0]), np.array([1]), twice.boxes_xywh[:1], np.array([0.9]))
    assert DecisionEvaluator(twice, results, base=np.ones(1, bool)).reliability(np.ones(1, bool)).recall == 1
