"""Short lists of many items in a message."""

from collections.abc import Sequence


def join_first(items: Sequence[object], limit: int = 10, *, separator: str = ", ") -> str:
    """Join the first items and the number of the others, such as "a, b and 7 more".

    Args:
        limit: maximum number of items to name; if there are no more, all are named.
        separator: use "; " if items contain commas: "a; b; and 7 more".
    """
    first = separator.join(map(str, items[:limit]))
    num_left = len(items) - limit
    if num_left <= 0:
        return first
    return f"{first}{' ' if separator == ', ' else separator}and {num_left:,} more"
