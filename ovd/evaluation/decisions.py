"""Metrics of a detector's decisions: whether a class is present in an image, and its boxes where it is present.

AP ranks the detections of one class over images and needs no decision. Here every detection at or above a threshold is
a decision. Classification-gated F1 and IL_MCC are metrics of SAM 3 (arXiv:2511.16719), whose evaluator averages F1 over
IoU 0.5 to 0.95 and reports scores from 0.5 on; choosing the threshold on the other half of the images is this toolkit's
own rule.

A pair of an image and a class is judged if the truth knows whether the class is in the image: every pair of an
exhaustively annotated set; in a federated set the classes that are annotated in the image or verified to be absent.
Boxes count in the judged pairs in which every object has a box: not where a federated truth says that some are missing,
nor where there is a crowd region. A pair with only a crowd region is not judged, as in COCO's metrics.

All arrays are sparse: only pairs with a true box or with a detection have an entry.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from ovd.data.box_arrays import overlaps, to_xyxy
from ovd.data.truth import Truth
from ovd.evaluation.image_classes import ImageClassPairs
from ovd.evaluation.results import Results
from ovd.shapes import Bool, Float64, Int64

IOUS = np.linspace(0.5, 0.95, 10)
MIN_DECISION_SCORE = 0.05
"""Lowest score of a detection that takes part in decisions."""
NUM_BINS = 15


@dataclass(frozen=True)
class Decisions:
    """Metrics of the decisions about a group of classes, with one threshold for each half of the images."""

    cgF1: float | None
    """100 x pmF1 x IL_MCC; None if one of them is None."""
    cgF1_50_95: float | None
    """cgF1 with F1 averaged over IoU 0.5 to 0.95, as in SAM 3; `cgF1` is SAM 3's cgF1 at IoU 0.5."""
    pmF1: float | None
    """F1 of boxes at IoU 0.5, counted over all pairs whose class is present, 0 to 1; None without a true box."""
    IL_MCC: float | None
    """Matthews correlation of reported and true presence over all judged pairs, -1 to 1; None if it is undefined, since
    the classes are present in all of these pairs or in none."""
    absent_per_image: float
    """Number of classes per image that are reported but not present."""


@dataclass(frozen=True)
class Reliability:
    """Reliability of scores as probabilities, over all detections at or above the floor. A detection is right if it
    overlaps a true box of its class at IoU 0.5."""

    error: float | None
    """Expected calibration error over `NUM_BINS` bins of equal count; None without a detection, or if a score is above
    1, so that scores are no probabilities."""
    brier: float | None
    """Mean squared difference between score and outcome; None where `error` is."""
    recall: float | None
    """Share of true boxes that a detection overlaps; None without a true box."""
    scores: Float64[np.ndarray, " B"]
    """Mean score of each bin; no bin where `error` is None."""
    outcomes: Float64[np.ndarray, " B"]
    """Share of right detections in each bin."""


@dataclass(frozen=True)
class Verdicts:
    """Outcome of each reported detection and of each true box, at IoU 0.5."""

    reported: Results
    """Detections at or above the threshold of their image."""
    is_right: Bool[np.ndarray, " K"]
    """Whether the detection is matched one to one with a true box of its class."""
    is_counted: Bool[np.ndarray, " K"]
    """Whether every object of its class in its image has a box, so that the detection is wrong if it is not right."""
    is_absent: Bool[np.ndarray, " K"]
    """Whether its class is known to be absent from its image."""
    true_rows: Int64[np.ndarray, " R"]
    """Rows of the truth's boxes that count: no crowds, and no boxes of pairs in which boxes are missing."""
    is_found: Bool[np.ndarray, " R"]
    """Whether a right detection is matched with the true box."""


@dataclass(frozen=True)
class _Matches:
    """Matches of K detections and R true boxes."""

    overlap: Bool[np.ndarray, " K"]
    """Whether the detection overlaps a true box of its pair at IoU 0.5."""
    hits: Bool[np.ndarray, "K T"]
    """Whether the detection is matched one to one at each of `IOUS`."""
    found: Bool[np.ndarray, " R"]
    """Whether a detection overlaps the true box at IoU 0.5."""
    score_of_true: Float64[np.ndarray, " R"]
    """Score of the detection that the true box is matched with at IoU 0.5; -1 without a match."""


@dataclass(frozen=True)
class _JudgedPairs:
    """The judged pairs of an image and a class, and the pairs that may have objects without a box."""

    included: Int64[np.ndarray, " P"] | None
    """Numbers of the judged pairs of a federated truth; None if all pairs except `excluded` are judged."""
    excluded: Int64[np.ndarray, " U"]
    """Numbers of the pairs of an exhaustive truth with only a crowd region."""
    incomplete: Int64[np.ndarray, " I"]
    """Numbers of the pairs in which boxes do not count."""

    @classmethod
    def from_truth(cls, truth: Truth, pairs: ImageClassPairs, true_numbers: Int64[np.ndarray, " R"]) -> "_JudgedPairs":
        """Find the pairs that a truth can judge.

        Args:
            true_numbers: number of each true box's pair, without crowds.
        """
        if truth.is_federated:
            return cls(pairs.known(), np.zeros(0, np.int64), pairs.incomplete())
        with_crowd = np.unique(pairs.numbers(truth.image_ids[truth.crowd], truth.category_ids[truth.crowd]))
        return cls(None, np.setdiff1d(with_crowd, true_numbers), with_crowd)

    def contains(self, numbers: Int64[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        """Return which pairs are judged."""
        return ~np.isin(numbers, self.excluded) if self.included is None else np.isin(numbers, self.included)


@dataclass(frozen=True)
class _Pairs:
    """The S pairs with a true box or a detection, ascending by number."""

    numbers: Int64[np.ndarray, " S"]
    num_true: Int64[np.ndarray, " S"]
    """Number of true boxes."""
    best_scores: Float64[np.ndarray, " S"]
    """Score of the best detection; -infinity without one."""
    is_present: Bool[np.ndarray, " S"]
    """Whether the class is known to be in the image."""
    is_absent: Bool[np.ndarray, " S"]
    """Whether the class is known to be absent from the image. A pair that is not judged is neither present nor
    absent."""
    is_complete: Bool[np.ndarray, " S"]
    """Whether the pair is judged and all its objects have boxes, so that boxes count."""


class DecisionEvaluator:
    """Evaluator of a data set's detections as decisions; matching runs once for all groups of classes.

    Args:
        truth: truth of the data set.
        results: all detections.
        base: mask of the truth's categories on which the thresholds are chosen.
        floor: detections of a lower score are ignored.
    """

    def __init__(
        self, truth: Truth, results: Results, *, base: Bool[np.ndarray, " C"], floor: float = MIN_DECISION_SCORE
    ):
        self._base, self._results, self._floor = base, results, floor
        self._all_pairs = ImageClassPairs(truth)
        is_box = ~truth.crowd
        true_numbers = self._all_pairs.numbers(truth.image_ids[is_box], truth.category_ids[is_box])
        numbers = self._all_pairs.numbers(results.image_ids, results.category_ids)
        self._judged = _JudgedPairs.from_truth(truth, self._all_pairs, true_numbers)
        self._half_of_result = self._halves(numbers)

        takes_part = results.scores >= floor
        if truth.is_federated:  # most detections are of pairs that are not judged
            takes_part &= self._judged.contains(numbers)
        # For the R true boxes and the K detections that take part: their rows in the truth and in the results, and
        # their positions in the S pairs.
        self._true_rows, self._rows = np.flatnonzero(is_box), np.flatnonzero(takes_part)
        numbers, self._scores = numbers[self._rows], results.scores[self._rows]
        pair_numbers = np.unique(np.concatenate([true_numbers, numbers]))
        self._pair_of_true = np.searchsorted(pair_numbers, true_numbers)
        self._pair_of_detection = np.searchsorted(pair_numbers, numbers)
        self._pairs = self._collect_pairs(pair_numbers)
        true_boxes, boxes = to_xyxy(truth.boxes_xywh[is_box]), to_xyxy(results.boxes_xywh[self._rows])
        self._matches = _match(self._pair_of_true, true_boxes, self._pair_of_detection, boxes, self._scores)

    def _collect_pairs(self, numbers: Int64[np.ndarray, " S"]) -> _Pairs:
        """Collect the true presence and the reported scores of these pairs."""
        num_true = np.bincount(self._pair_of_true, minlength=len(numbers))
        best_scores = np.full(len(numbers), -np.inf)
        np.maximum.at(best_scores, self._pair_of_detection, self._scores)
        is_judged = self._judged.contains(numbers)
        return _Pairs(
            numbers,
            num_true,
            best_scores,
            is_present=is_judged & (num_true > 0),
            is_absent=is_judged & (num_true == 0),
            is_complete=is_judged & ~np.isin(numbers, self._judged.incomplete),
        )

    def thresholds(self) -> tuple[float, float]:
        """Choose the thresholds for the even images and for the odd ones, each on the base classes of the other half.

        The threshold with the highest product of F1 and IL_MCC is chosen, or with the highest F1 if IL_MCC is
        undefined. Every score of a detection is tried; of equally good thresholds the lowest is taken.
        """
        candidates = np.unique(np.concatenate([[self._floor], self._scores]))
        best = []
        for half in (1, 0):
            counts = self._count(self._base, half, candidates)
            mcc = _mcc(counts)
            objective = _f1(counts) * np.where(np.isnan(mcc), 1.0, mcc)
            best.append(float(candidates[int(np.argmax(objective))]))
        return best[0], best[1]

    def decide(self, classes: Bool[np.ndarray, " C"], thresholds: tuple[float, float]) -> Decisions:
        """Compute the metrics of the decisions about a group of classes.

        Args:
            thresholds: for the even images and for the odd ones; lower ones than the floor are raised to it.
        """
        thresholds = max(thresholds[0], self._floor), max(thresholds[1], self._floor)
        even, odd = (self._count(classes, half, np.array([threshold])) for half, threshold in enumerate(thresholds))
        total = even + odd
        mcc, f1 = float(_mcc(total)[0]), float(_f1(total)[0])
        hits = np.sum([self._hits(classes, half, threshold) for half, threshold in enumerate(thresholds)], axis=0)
        mean_f1 = float(_f1(replace(total, hits=hits.mean(keepdims=True)))[0])
        has_boxes, has_mcc = bool(total.true[0] > 0), not np.isnan(mcc)
        return Decisions(
            cgF1=100 * f1 * mcc if has_boxes and has_mcc else None,
            cgF1_50_95=100 * mean_f1 * mcc if has_boxes and has_mcc else None,
            pmF1=f1 if has_boxes else None,
            IL_MCC=mcc if has_mcc else None,
            absent_per_image=float(total.false_present[0]) / max(1, self._all_pairs.num_images),
        )

    def reliability(self, classes: Bool[np.ndarray, " C"]) -> Reliability:
        """Measure how well the scores of a group of classes are probabilities, in the pairs where boxes count.

        Each detection counts with the share of right ones among the detections of its score, so that the order of equal
        scores does not change the bins.
        """
        is_of_classes = classes[self._all_pairs.class_rows(self._pairs.numbers)]
        chosen = (is_of_classes & self._pairs.is_complete)[self._pair_of_detection]
        chosen_true = is_of_classes[self._pair_of_true]
        recall = float(self._matches.found[chosen_true].mean()) if chosen_true.any() else None
        scores, right = self._scores[chosen], self._matches.overlap[chosen]
        if not len(scores) or scores.max() > 1:
            return Reliability(None, None, recall, scores=np.zeros(0), outcomes=np.zeros(0))
        order = np.argsort(scores, kind="stable")
        bins = [part for part in np.array_split(order, NUM_BINS) if len(part)]
        share_right = _means_of_equal(scores, right)
        means = np.array([scores[part].mean() for part in bins])
        outcomes = np.array([share_right[part].mean() for part in bins])
        weights = np.array([len(part) for part in bins]) / len(order)
        return Reliability(
            error=float((weights * np.abs(means - outcomes)).sum()),
            brier=math.fsum(((scores - right) ** 2).tolist()) / len(scores),  # exact, whatever the order of the images
            recall=recall,
            scores=means,
            outcomes=outcomes,
        )

    def verdicts(self, thresholds: tuple[float, float]) -> Verdicts:
        """Determine the outcome of each reported detection and each true box.

        Args:
            thresholds: for the even images and for the odd ones; lower ones than the floor are raised to it.
        """
        half_thresholds = np.maximum(thresholds, self._floor)
        is_reported = self._results.scores >= half_thresholds[self._half_of_result]
        counted = self._pairs.is_complete[self._pair_of_true]
        threshold_of_true = half_thresholds[self._halves(self._pairs.numbers[self._pair_of_true])]

        def for_reported(is_so: Bool[np.ndarray, " J"]) -> Bool[np.ndarray, " K"]:
            """Map a mask of the detections that take part to the reported ones; False for one that takes no part."""
            of_all = np.zeros(len(is_reported), bool)
            of_all[self._rows] = is_so
            return of_all[is_reported]

        return Verdicts(
            reported=self._results.take(is_reported),
            is_right=for_reported(self._matches.hits[:, 0]),
            is_counted=for_reported(self._pairs.is_complete[self._pair_of_detection]),
            is_absent=for_reported(self._pairs.is_absent[self._pair_of_detection]),
            true_rows=self._true_rows[counted],
            is_found=(self._matches.score_of_true >= threshold_of_true)[counted],
        )

    def _halves(self, pairs: Int64[np.ndarray, " Q"]) -> Int64[np.ndarray, " Q"]:
        """Return 0 for pairs, by number, of even images and 1 for those of odd images."""
        return self._all_pairs.image_rows(pairs) % 2

    def _in(self, classes: Bool[np.ndarray, " C"], half: int, pairs: Int64[np.ndarray, " Q"]) -> Bool[np.ndarray, " Q"]:
        """Return which pairs, by number, belong to these classes and to the even (0) or odd (1) images."""
        return classes[self._all_pairs.class_rows(pairs)] & (self._halves(pairs) == half)

    def _num_judged(self, classes: Bool[np.ndarray, " C"], half: int) -> int:
        """Count the judged pairs, including those without a true box or a detection."""
        if self._judged.included is not None:
            return int(self._in(classes, half, self._judged.included).sum())
        num_images = len(range(half, self._all_pairs.num_images, 2))
        return num_images * int(classes.sum()) - int(self._in(classes, half, self._judged.excluded).sum())

    def _count(self, classes: Bool[np.ndarray, " C"], half: int, thresholds: Float64[np.ndarray, " T"]) -> "_Counts":
        pairs = self._pairs
        chosen = self._in(classes, half, pairs.numbers)
        present, absent = chosen & pairs.is_present, chosen & pairs.is_absent
        counted = present & pairs.is_complete
        is_counted = counted[self._pair_of_detection]
        num_present = int(present.sum())
        true_present = _count_at_least(pairs.best_scores[present], thresholds)
        false_present = _count_at_least(pairs.best_scores[absent], thresholds)
        return _Counts(
            true_present=true_present,
            false_present=false_present,
            false_absent=num_present - true_present,
            true_absent=self._num_judged(classes, half) - num_present - false_present,
            hits=_count_at_least(self._scores[is_counted & self._matches.hits[:, 0]], thresholds),
            reported=_count_at_least(self._scores[is_counted], thresholds),
            true=np.full(len(thresholds), pairs.num_true[counted].sum(), np.float64),
        )

    def _hits(self, classes: Bool[np.ndarray, " C"], half: int, threshold: float) -> Int64[np.ndarray, " T"]:
        """Count the right boxes at each of `IOUS`, in the pairs whose class is present and whose boxes count."""
        pairs = self._pairs
        counted = self._in(classes, half, pairs.numbers) & pairs.is_present & pairs.is_complete
        return self._matches.hits[counted[self._pair_of_detection] & (self._scores >= threshold)].sum(axis=0)


@dataclass(frozen=True)
class _Counts:
    """Numbers of pairs by reported and true presence, and of boxes where the class is present, at each threshold."""

    true_present: Float64[np.ndarray, " T"]
    false_present: Float64[np.ndarray, " T"]
    false_absent: Float64[np.ndarray, " T"]
    true_absent: Float64[np.ndarray, " T"]
    hits: Float64[np.ndarray, " T"]
    reported: Float64[np.ndarray, " T"]
    true: Float64[np.ndarray, " T"]

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(_Counts)))


def _count_at_least(
    values: Float64[np.ndarray, " V"], thresholds: Float64[np.ndarray, " T"]
) -> Float64[np.ndarray, " T"]:
    """Count the values at or above each threshold."""
    return (len(values) - np.searchsorted(np.sort(values), thresholds, side="left")).astype(np.float64)


def _means_of_equal(scores: Float64[np.ndarray, " K"], right: Bool[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    """Compute for each detection the share of right ones among the detections of its score."""
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.bincount(group, weights=right, minlength=len(sizes)) / sizes)[group]


def _mcc(counts: _Counts) -> Float64[np.ndarray, " T"]:
    """Compute the Matthews correlation; 0 if all pairs are reported or none, NaN if the class is in all or none."""
    a, b, c, d = counts.true_present, counts.false_present, counts.false_absent, counts.true_absent
    product = (a + b) * (a + c) * (d + b) * (d + c)
    mcc = np.divide(a * d - b * c, product**0.5, out=np.zeros_like(product), where=product > 0)
    return np.where((a + c) * (d + b) > 0, mcc, np.nan)


def _f1(counts: _Counts) -> Float64[np.ndarray, " T"]:
    boxes = counts.reported + counts.true
    return np.divide(2 * counts.hits, boxes, out=np.zeros_like(boxes), where=boxes > 0)


def _match(
    true_pair: Int64[np.ndarray, " R"],
    true_boxes: Float64[np.ndarray, "R 4"],
    pair: Int64[np.ndarray, " K"],
    boxes: Float64[np.ndarray, "K 4"],
    scores: Float64[np.ndarray, " K"],
) -> _Matches:
    """Match detections with the true boxes of their pair of an image and a class.

    A pair's detections are matched in descending order of score, each to the free true box that it overlaps most, so a
    higher threshold never changes the matches of the remaining detections. All pairs are matched together: first the
    best detection of each pair, then the second, and so on. Within a turn no two detections compete for a true box.
    """
    hits, taken = np.zeros((len(pair), len(IOUS)), bool), np.zeros((len(true_pair), len(IOUS)), bool)
    overlap, found = np.zeros(len(pair), bool), np.zeros(len(true_pair), bool)
    score_of_true = np.full(len(true_pair), -1.0)
    rows, true_rows, iou = overlaps(true_pair, true_boxes, pair, boxes, scores, min_iou=IOUS[0])
    overlap[rows] = found[true_rows] = True
    for turn in _turns(rows, pair[rows]):
        detection, true = rows[turn], true_rows[turn]
        free = np.where((iou[turn, None] >= IOUS) & ~taken[true], iou[turn, None], -1)
        best, entry = _best_of_runs(free, detection)
        is_matched = best >= 0
        chosen, column = entry[is_matched], np.nonzero(is_matched)[1]
        taken[true[chosen], column] = hits[detection[chosen], column] = True
        at_lowest = chosen[column == 0]
        score_of_true[true[at_lowest]] = scores[detection[at_lowest]]
    return _Matches(overlap, hits, found, score_of_true)


def _turns(rows: Int64[np.ndarray, " E"], pairs: Int64[np.ndarray, " E"]) -> Iterator[Int64[np.ndarray, " e"]]:
    """Yield the positions of the overlaps of each pair's best detection, then of its second best, and so on.

    Args:
        rows: the detection of each overlap, best first within a pair.
        pairs: the pair of each overlap, ascending.
    """
    if not len(rows):
        return
    number = np.cumsum(np.diff(rows, prepend=rows[0]) != 0)  # detections are numbered over all pairs
    starts, lengths = _runs(pairs)
    rank = number - np.repeat(number[starts], lengths)
    by_rank = np.argsort(rank, kind="stable")
    yield from np.split(by_rank, np.flatnonzero(np.diff(rank[by_rank])) + 1)


def _best_of_runs(
    values: Float64[np.ndarray, "e T"], owners: Int64[np.ndarray, " e"]
) -> tuple[Float64[np.ndarray, "n T"], Int64[np.ndarray, "n T"]]:
    """Return, for each run of equal owners, the highest value in each column and the first entry that has it."""
    starts, lengths = _runs(owners)
    best = np.maximum.reduceat(values, starts)
    is_best = values == np.repeat(best, lengths, axis=0)
    entries = np.where(is_best, np.arange(len(values))[:, None], len(values))
    return best, np.minimum.reduceat(entries, starts)


def _runs(values: Int64[np.ndarray, " E"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return the start and length of each run of equal values; the values must not be negative."""
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    return starts, np.diff(starts, append=len(values))
