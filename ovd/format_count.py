"""Numbers with their nouns in a message."""


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    """Format a number and its noun, such as "1 box" and "1,200 boxes".

    Args:
        noun: the noun in the singular.
        plural: the noun in the plural; by default the singular with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
