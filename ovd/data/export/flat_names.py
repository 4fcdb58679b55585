"""Unique names for files in one folder."""

import os
from collections.abc import Collection, Sequence


def flat_names(files: Sequence[str], avoid: Collection[str] = ()) -> list[str]:
    """Return names for files in one folder, none of them hidden, each with a different stem.

    For example, a/b.jpg becomes a__b.jpg, and b.png becomes b_2.png beside b.jpg.

    Args:
        avoid: stems that a file may have only if its own name has it already.
    """
    taken, names = set[str](), []
    for file in files:
        stem, suffix = os.path.splitext(file.replace("/", "__").lstrip("."))
        own = os.path.splitext(file)[0]
        number, name = 1, stem
        while name in taken or (name != own and name in avoid):
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        names.append(name + suffix)
    return names
