"""One class of a data set's vocabulary."""

from dataclasses import dataclass, field

from ovd.choices import Frequency

UNCOUNTED = -(2**63)
"""`Category.image_count` in a table whose file states none (no file can state this); index and truth count then."""


@dataclass(frozen=True)
class Category:
    """One class of the vocabulary."""

    id: int
    name: str
    synonyms: tuple[str, ...] = ()
    frequency: Frequency | None = None
    """LVIS's rare, common or frequent; None where the file is silent."""
    image_count: int = UNCOUNTED
    """Training images with the class as the file states it, else images of this file with a box of it."""
    is_parent: bool = field(default=False, repr=False)
    """Whether other classes of a file in COCO's form have it as their `supercategory`. No part of an index's
    fingerprint, which hashes the text of its categories: a parent is left out of an index, or has boxes."""
