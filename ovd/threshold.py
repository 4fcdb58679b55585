"""Score threshold above which boxes are shown."""

UNCALIBRATED_THRESHOLD = 0.45
"""Score threshold of a detector that was not calibrated."""


def shown_threshold(threshold: float | None) -> float:
    """Return a detector's own threshold, or the default for uncalibrated detectors."""
    return UNCALIBRATED_THRESHOLD if threshold is None else threshold
