"""The base of every group of settings: immutable, checked, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings. Modules that config.py imports define their own; configs embed or extend it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
