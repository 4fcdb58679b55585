"""The settings of a text bank's variants, which configs extend."""

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ovd.choices import Templates
from ovd.section import Section


class TextSources(Section):
    """What the variants of a class are made of (bank.py). Every source can be used alone or with any other."""

    templates: Templates = "short"
    """`none` is the bare class name; `short` 7 prompts, `full` the 80 of CLIP's ImageNet evaluation."""
    num_synonyms: NonNegativeInt = 0
    """Other names of a class that are used like its own, in training and evaluation, where the annotation file has
    them; at most this many."""
    draws: PositiveInt = 1
    """Training variants made of each text: the text as it is, and draws - 1 changed at random as the next two say."""
    token_drop: float = Field(default=0.0, ge=0, lt=1)
    """Chance that a token is left out of a changed text."""
    tower_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the text tower for a changed text, after attention and MLP."""
    seed: NonNegativeInt = 0
    """Seed of the random changes."""

    @model_validator(mode="after")
    def _draws_are_random(self) -> "TextSources":
        random = self.token_drop > 0 or self.tower_dropout > 0
        if random != (self.draws > 1):
            raise ValueError(
                f"draws={self.draws}, token_drop={self.token_drop}, tower_dropout={self.tower_dropout}: several draws "
                "need a chance above 0, and the other way round"
            )
        return self
