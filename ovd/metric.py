"""A metric, 0 to 1; of what has no true box it is -1, as in the reference evaluators.

Scores of decisions (cgF1, IL_MCC) are no such metrics: they may be -1, and are None where they are not known.
"""

NO_TRUE_BOX = -1.0
"""The metric where there is no true box to speak of."""


def is_known(metric: float) -> bool:
    """Whether there was a true box to measure it on."""
    return metric != NO_TRUE_BOX


def per_cent(metric: float, digits: int = 2, *, otherwise: str = "-") -> str:
    """A metric in per cent, for people; `otherwise` without a true box."""
    return f"{100 * metric:.{digits}f}" if is_known(metric) else otherwise
