"""Data classes for the figures of naming: how often true boxes and points are named right, per group of classes."""

from dataclasses import dataclass, fields

from ovd.evaluation.confusions import Confusion
from ovd.evaluation.groups import Group


@dataclass(frozen=True)
class NamingShares:
    """Share of boxes that are named right, or a difference of two shares, for each way to name a box."""

    naming_before: float
    """Share named right by CLIP's dense feature at the box's point: the text of the box's class is the most similar."""
    naming_mean: float
    """Share named right by the mean of CLIP's dense feature over the box."""
    naming_crop: float
    """Share named right by CLIP on the tight square crop of the box."""
    naming_after: float
    """Share named right by the detector's class embedding at the box's point."""


NAMING_METHODS = tuple(field.name for field in fields(NamingShares))
"""Ways to name a box, in the order of all columns, rows and bars."""


@dataclass(frozen=True)
class MeanCosines:
    """Mean cosines at a number of points."""

    cosine: float
    """Cosine between the detector's class embedding and CLIP's dense feature."""
    backbone_cosine: float
    """Cosine between the dense features of the detector's backbone and of CLIP's; lower if the backbone drifted."""


@dataclass(frozen=True)
class BoxNaming:
    """Naming of true boxes, at one point each."""

    count: int
    shares: NamingShares
    cosines: MeanCosines


@dataclass(frozen=True)
class PointNaming:
    """Naming of points in true boxes, which have no mean and no crop."""

    count: int
    before: float
    """Share of points that CLIP's dense feature names right."""
    after: float
    """Share of points that the detector's class embedding names right."""
    cosines: MeanCosines


@dataclass(frozen=True)
class GroupNaming:
    """Naming of the true boxes of a group of classes."""

    group: Group
    boxes: BoxNaming
    """Naming at one point per box: of the points matched to it, the one nearest to its center."""
    points: PointNaming
    """Naming at every point inside a box on the pyramid level of that nearest point. A lower `after` does no harm here,
    since a detector is trained to predict background away from the center."""


@dataclass(frozen=True)
class NamingReport:
    """Naming of true boxes, for each group of classes that has a true box with a matched point."""

    groups: tuple[GroupNaming, ...]
    """Groups, `all` first; only `all` if the annotation file has no frequencies."""
    num_classes: int
    """Number of names to choose from."""
    num_images: int
    num_boxes_without_point: int
    """Number of boxes that no point is matched to, as they are too small or covered by smaller ones; they count nowhere
    else."""
    crop_side_px: int
    rare_among_rare: NamingShares | None = None
    """Share of rare boxes named right if only the rare names may be chosen; None without a rare box."""
    base_bias: NamingShares | None = None
    """`rare_among_rare` minus the share among all names: rare boxes that would be named right without base names."""
    confusions: tuple[Confusion, ...] = ()
    """Wrong names that the detector gives most often, at most `MAX_CONFUSIONS`."""
