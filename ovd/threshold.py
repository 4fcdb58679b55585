"""The score above which boxes are shown."""

UNCALIBRATED_THRESHOLD = 0.45
"""Of a detector that was not calibrated."""


def shown_threshold(threshold: float | None) -> float:
    """A detector's own threshold, or for want of it a usual one."""
    return UNCALIBRATED_THRESHOLD if threshold is None else threshold
