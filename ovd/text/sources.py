"""Settings of a text bank's variants, which configs extend."""

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ovd.choices import Templates
from ovd.section import Section


class TextSources(Section):
    """Sources of the variants of a class (bank.py). Every source can be used alone or with any other."""

    templates: Templates = "short"
    """Prompts: `none` is the bare class name, `short` 7 templates, `full` the 80 of CLIP's ImageNet evaluation."""
    num_synonyms: NonNegativeInt = 0
    """Maximum number of synonyms per class, from the annotation file, that are used like its name in training and
    evaluation."""
    draws: PositiveInt = 1
    """Training variants per text: the text as it is, and draws - 1 random changes of it by `token_drop` and
    `tower_dropout`, of which at least one must then be above 0."""
    token_drop: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a token is dropped from a changed text."""
    tower_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability in the text tower, after attention and MLP, for a changed text."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the random changes."""

    @model_validator(mode="after")
    def _draws_are_random(self) -> "TextSources":
        random = self.token_drop > 0 or self.tower_dropout > 0
        if random != (self.draws > 1):
            raise ValueError(
                f"draws={self.draws}, token_drop={self.token_drop}, tower_dropout={self.tower_dropout}: several draws "
                "need a probability above 0, and a probability above 0 needs several draws"
            )
        return self
