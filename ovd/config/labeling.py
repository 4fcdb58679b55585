"""Settings for labeling image-text pairs."""

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from ovd.choices import QuerySource
from ovd.format_count import format_count
from ovd.section import Section


class LabelOptions(Section):
    """Settings of a teacher that labels image-text pairs: its queries, and the boxes to keep."""

    queries: QuerySource
    """Queries for an image: `caption`, its whole caption; `ngrams` or `nouns`, the caption's n-grams or noun phrases;
    `classes`, the same class names for every image."""
    classes: tuple[str, ...] = ()
    """Class names; used with `queries: classes`."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Score above which boxes are kept. Keep it low, since filters are applied later."""
    max_boxes: PositiveInt = 100
    """Maximum number of boxes per image, those with the best scores. The best box of each text is kept in any case."""
    batch_size: PositiveInt = 16
    """Number of pairs, all from one shard, that the teacher processes together."""

    @model_validator(mode="after")
    def _classes_go_with_queries(self) -> "LabelOptions":
        if (self.queries == "classes") != bool(self.classes) or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"queries is {self.queries!r}, with {format_count(len(self.classes), 'class name')}; `classes` needs "
                "distinct names, and the other kinds of queries none"
            )
        return self
