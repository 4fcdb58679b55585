"""Base class of all groups of settings, which are immutable, validated and refuse unknown keys."""

import os
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator, model_validator


class Section(BaseModel):
    """Base class of a group of settings.

    Modules that config/ imports define their own groups, which the configs embed or extend.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def refuse_bool_for_number(cls, values: Any) -> Any:
        """Refuse `true`, `on` and `yes` for a number: YAML reads them as booleans, which pydantic would take as 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            items = value if isinstance(value, list | tuple) else [value]
            truth_value = next((item for item in items if isinstance(item, bool)), None)
            if truth_value is not None and name in cls.model_fields:
                kinds = _kinds_in(cls.model_fields[name].annotation)
                if kinds & {int, float} and bool not in kinds:
                    raise ValueError(f"{name} must be a number, not {str(truth_value).lower()}")
        return values

    @field_validator("*")
    @classmethod
    def expand_home(cls, value: Any) -> Any:
        """Expand a leading `~`, which a shell does not expand after `data.source.train_annotations=`."""
        return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def _kinds_in(annotation: Any) -> set[Any]:
    """Return an annotation and all types in it."""
    return {annotation}.union(*map(_kinds_in, get_args(annotation)))
