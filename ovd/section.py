"""What every group of settings is: immutable, checked, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings. Code below config.py defines its own beside what it sets; configs embed or extend it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
