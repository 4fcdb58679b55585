"""Settings for the experts that a detector is used with."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ovd.choices import SamePlace


@dataclass(frozen=True)
class ExpertGroup:
    """The experts that a detector is used with, and how they are used."""

    folders: tuple[Path, ...] = ()
    """Expert folders, or the run folders that they are in; none for the detector alone."""
    same_place: SamePlace = "base_stays"
    """Rule for boxes of the base detector and of an expert at one place."""
    nearest: bool = False
    """Whether experts also answer queries in other words that are near to their names."""

    def __post_init__(self) -> None:
        if self.same_place not in get_args(SamePlace):
            raise ValueError(f"same_place must be one of {', '.join(get_args(SamePlace))}, not {self.same_place!r}")


NO_EXPERTS = ExpertGroup()
