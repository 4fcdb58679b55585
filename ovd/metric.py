"""Values of a metric: 0 to 1, or -1 if there is no true box to measure it on, as in the reference evaluators.

Scores of decisions (cgF1, IL_MCC) are different: -1 is one of their values, and they are None if unknown.
"""

NO_TRUE_BOX = -1.0
"""Value of a metric without true boxes."""


def is_known(metric: float) -> bool:
    """Check whether there was a true box to measure a metric on."""
    return metric != NO_TRUE_BOX


def per_cent(metric: float, digits: int = 2) -> str:
    """Format a metric in percent; without a true box, return a dash."""
    return f"{100 * metric:.{digits}f}" if is_known(metric) else "-"
