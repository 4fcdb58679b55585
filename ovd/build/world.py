"""The embedded world of a config."""

from pathlib import Path

from ovd.config.training import TrainConfig, WorldData
from ovd.data.world.build import TRANSFER_PARTS, build_world
from ovd.data.world.settings import Settings


def world_folder(source: WorldData, *parts: str) -> Path:
    """Return the folder of a source's world, in which these parts are drawn on first use (`build_world`)."""
    return build_world(source.root, parts, Settings(seed=source.seed))


def draw_world(config: TrainConfig) -> Path:
    """Draw the missing parts of the config's embedded world, except the pretraining pairs, and return its folder.

    Raises:
        ValueError: the config's data is not the world.
    """
    source = config.data.source
    if not isinstance(source, WorldData):
        raise ValueError("this works only with the embedded world; set data.source.kind=world")
    return world_folder(source, "train", "val", "pairs", *TRANSFER_PARTS)
