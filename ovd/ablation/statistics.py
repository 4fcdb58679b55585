"""Statistics over the seeds of a row, or of the difference of two rows: mean, standard deviation, 95 % interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.special import stdtrit

from ovd.ablation.records import Record
from ovd.metric import is_known

CONFIDENCE = 0.95
SIGNED_METRICS = frozenset({"cgF1", "cgF1_rare", "IL_MCC", "kept_cgF1"})
"""Metrics that may be negative, so that -1 is a valid value; records have None where they are unknown."""


@dataclass(frozen=True)
class Estimate:
    """Mean of N >= 1 values, with deviation and interval; both are None for a single value."""

    mean: float
    deviation: float | None
    """Standard deviation of the values (divided by N - 1)."""
    interval: tuple[float, float] | None
    """Two-sided 95 % interval of the mean by Student's t with N - 1 degrees of freedom."""
    num_values: int


def estimate(values: Float64[np.ndarray, " N"]) -> Estimate:
    """Compute mean, deviation and interval of at least one value."""
    mean, num_values = float(values.mean()), len(values)
    if num_values == 1:
        return Estimate(mean, None, None, 1)
    deviation = float(values.std(ddof=1))
    half = float(stdtrit(num_values - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(num_values)
    return Estimate(mean, deviation, (mean - half, mean + half), num_values)


def row_estimate(records: Sequence[Record], row: str, metric: str) -> Estimate | None:
    """Estimate a row's metric over its seeds; return None without a record, or if a record lacks the metric.

    Args:
        metric: a field of `Record`, or a key of its `extra`.
    """
    return _estimate_of_known(metric_values(list(records_by_seed(records, row).values()), metric))


def paired_difference(records: Sequence[Record], row: str, other: str, metric: str) -> Estimate | None:
    """Estimate the metric of `row` minus that of `other`, paired over the seeds that both rows have.

    Return None if there are no such seeds, or if a record of them lacks the metric.
    """
    row_records, other_records = records_by_seed(records, row), records_by_seed(records, other)
    seeds = sorted(row_records.keys() & other_records.keys())
    return _estimate_of_known(
        metric_values([row_records[seed] for seed in seeds], metric)
        - metric_values([other_records[seed] for seed in seeds], metric)
    )


def _estimate_of_known(values: Float64[np.ndarray, " N"]) -> Estimate | None:
    return estimate(values) if len(values) and not np.isnan(values).any() else None


def metric_values(records: Sequence[Record | None], metric: str) -> Float64[np.ndarray, " N"]:
    """Return each record's metric, a field or a key of `extra`; NaN without a record, or if the record lacks it."""
    values = [None if record is None else getattr(record, metric, record.extra.get(metric)) for record in records]
    return np.array([value_or_nan(value, metric) for value in values], float)


def value_or_nan(value: float | None, metric: str) -> float:
    """Return a metric's value; NaN for None and, unless the metric is in `SIGNED_METRICS`, for -1 (no true box)."""
    return value if value is not None and (metric in SIGNED_METRICS or is_known(value)) else math.nan


def records_by_seed(records: Sequence[Record], row: str) -> dict[int, Record]:
    """Return a row's records by seed, in ascending order."""
    row_records = sorted((record for record in records if record.row == row), key=lambda record: record.seed)
    by_seed = {record.seed: record for record in row_records}
    assert len(by_seed) == len(row_records), f"{row}: two records of one seed; select records first"
    return by_seed
