"""The first of many things in a message, and how many more there are."""

from collections.abc import Sequence


def first_of(items: Sequence[object], limit: int = 10, *, separator: str = ", ") -> str:
    """The first items, such as "a, b and 7 more"; all where they are no more than the limit.

    Args:
        separator: "; " where items have commas in them: "a; b; and 7 more".
    """
    first = separator.join(map(str, items[:limit]))
    num_left = len(items) - limit
    if num_left <= 0:
        return first
    return f"{first}{' ' if separator == ', ' else separator}and {num_left:,} more"
