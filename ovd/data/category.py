"""One class of a data set's vocabulary."""

from dataclasses import dataclass, field

from ovd.choices import Frequency

UNCOUNTED = -(2**63)
"""`Category.image_count` of a file that states none, until index and truth replace it by their own counts.

No file can state this value."""


@dataclass(frozen=True)
class Category:
    """One class of the vocabulary."""

    id: int
    name: str
    synonyms: tuple[str, ...] = ()
    frequency: Frequency | None = None
    """LVIS's r, c or f (rare, common, frequent); None if the file states none."""
    image_count: int = UNCOUNTED
    """Number of training images with the class, as the file states it; otherwise the number of images in this file with
    a box of the class."""
    is_parent: bool = field(default=False, repr=False)
    """Whether other classes of a COCO-style file name this class as their `supercategory`. It is not part of an index's
    fingerprint, which hashes the repr of its categories: a parent is either left out of an index or has boxes."""
