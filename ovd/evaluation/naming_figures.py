"""The figures of naming: how often true boxes and points are named right, for groups of classes."""

from dataclasses import dataclass, fields

from ovd.evaluation.confusions import Confusion
from ovd.evaluation.groups import Group


@dataclass(frozen=True)
class Shares:
    """A share of boxes that are named right, or a difference of shares, for each way to name a box."""

    naming_before: float
    """By CLIP's dense feature at the box's point: the box's class is the most similar of all texts to it."""
    naming_mean: float
    """By the mean of CLIP's dense feature over the box."""
    naming_crop: float
    """By CLIP on the tight square crop of the box."""
    naming_after: float
    """By the detector's class embedding at the box's point."""


WAYS = tuple(field.name for field in fields(Shares))
"""The ways to name a box, in the order of all columns, rows and bars."""


@dataclass(frozen=True)
class Cosines:
    """Mean cosines at a number of points."""

    cosine: float
    """Between the detector's class embedding and CLIP's dense feature."""
    backbone_cosine: float
    """Between the dense features of the detector's backbone and of CLIP's: how far the backbone drifted."""


@dataclass(frozen=True)
class BoxNaming:
    """Of true boxes, at one point each."""

    count: int
    shares: Shares
    cosines: Cosines


@dataclass(frozen=True)
class PointNaming:
    """Of points in true boxes, which have no mean and no crop."""

    count: int
    before: float
    """Share of points that CLIP's dense feature names right."""
    after: float
    """The same for the detector's class embedding."""
    cosines: Cosines


@dataclass(frozen=True)
class GroupNaming:
    """The true boxes of some of the classes."""

    group: Group
    boxes: BoxNaming
    """At one point per box, of those matched to it the one nearest to its centre."""
    points: PointNaming
    """At every point inside a box on the pyramid level of that point. `after` may be lower here without harm:
    away from the centre a detector is trained to see background."""


@dataclass(frozen=True)
class NamingReport:
    """How often true boxes are named right, for each group of classes that has a true box with a point."""

    groups: tuple[GroupNaming, ...]
    """`all` first; only that one where the annotation file gives no frequencies."""
    num_classes: int
    """Names to choose from."""
    num_images: int
    num_boxes_without_point: int
    """Too small, or covered by smaller ones: no point is matched to them, and they count nowhere else."""
    crop_side_px: int
    rare_among_rare: Shares | None = None
    """Share of rare boxes named right where only the rare names may be chosen; None without a rare box."""
    base_bias: Shares | None = None
    """`rare_among_rare` less the share among all names: boxes that would be named right but for a base name."""
    confusions: tuple[Confusion, ...] = ()
    """The wrong names that the detector gives most often, at most `MAX_CONFUSIONS`."""
