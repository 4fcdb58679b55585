"""How many there are of something, in a message."""


def number_of(count: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun, such as "1 box" and "1,200 boxes".

    Args:
        noun: the singular.
        plural: by default with an s behind the singular.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
