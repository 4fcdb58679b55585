"""Names for the files of one folder."""

import os
from collections.abc import Collection, Sequence


def flat_names(files: Sequence[str], avoid: Collection[str] = ()) -> list[str]:
    """Names for one folder, none hidden, each with another stem: a/b.jpg becomes a__b.jpg, and b.png beside b.jpg
    b_2.png.

    Args:
        avoid: stems that no file may have but that of its own name.
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
