"""Settings of labelling image-text pairs."""

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from ovd.choices import QuerySource
from ovd.section import Section


class LabelOptions(Section):
    """Queries for a teacher in image-text pairs, and which of its boxes are kept."""

    queries: QuerySource
    """Queries of an image: its whole caption, the caption's n-grams or noun phrases, or the same class names for every
    image."""
    classes: tuple[str, ...] = ()
    """Class names; used with `queries: classes`."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Only boxes that score more are kept. Keep it low: filters come later."""
    max_boxes: PositiveInt = 100
    """Boxes that are kept of an image, the best ones; beside them the best of each of its texts."""
    batch_size: PositiveInt = 16
    """Pairs of a shard that are given to the teacher together."""

    @model_validator(mode="after")
    def _classes_go_with_queries(self) -> "LabelOptions":
        if (self.queries == "classes") != bool(self.classes) or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"queries {self.queries!r} with {len(self.classes)} class names: `classes` needs some, each once, and "
                "the other kinds of queries none"
            )
        return self
