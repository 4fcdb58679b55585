"""Settings for the tables of experiments: ablations, and ways to fine-tune."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from ovd.choices import Domain
from ovd.config.labeling import LabelOptions
from ovd.section import Section


class LabelsConfig(LabelOptions):
    """Settings of the pseudo-labels of an ablation's row."""

    shards: PositiveInt | None = None
    """Number of shards to label, from the first; all by default."""


class AblationRow(Section):
    """One row of the table: one training run, or the run of a teacher followed by the run of its student."""

    config: Path
    """Config of the run, or of the student, whose `init_from` and `data.pairs.labels` are filled in."""
    overrides: tuple[str, ...] = ()
    """Overrides of `config`, each of the form `eval.competition=20`."""
    teacher: Path | None = None
    """Config of the teacher's run, which is shared by all rows that name it; given together with `labels`."""
    labels: LabelsConfig | None = None
    """Settings for the teacher's labels of the pairs; given together with `teacher`."""
    align: Path | None = None
    """Config of `ovd align-backbone`, whose aligned model replaces `clip.name` in the row's runs."""
    title: str | None = None
    """Title of the row in pictures; by default its name."""

    @model_validator(mode="after")
    def _labels_have_a_teacher(self) -> "AblationRow":
        if (self.teacher is None) != (self.labels is None):
            raise ValueError("give both `teacher` and `labels`, or neither")
        return self


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is given twice")
    return seeds


Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_each_once)]
"""Distinct seeds of a table, at least one."""


class AblationConfig(Section):
    """A table of configs x seeds: `tools/ablate.py`."""

    records: Path
    """JSON lines file with one line per finished run, from which the table and the picture are made."""
    runs: Path
    """Folder of the run folders."""
    picture: Path
    """File of the picture."""
    seeds: Seeds
    """Seeds of the runs, each for the world's scenes, its choice of rare classes, and the training."""
    lengths: tuple[PositiveInt, ...] = ()
    """Numbers of steps to train every row for, instead of its config's `train.steps`; tables and picture compare them.
    By default every row is trained as its config says."""
    rows: dict[str, AblationRow]
    """Rows of the table by name, in order."""


class FineTuningRow(Section):
    """One row of a table of ways to fine-tune."""

    config: Path
    """Config of the fine-tuning, relative to the table's file."""
    overrides: tuple[str, ...] = ()
    """Overrides of `config`, each of the form key=value."""
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Weight of the fine-tuned detector in the average of its weights and the starting detector's; not for an
    expert."""
    replay: bool = False
    """Train on the world's image-text pairs as well, labeled by the starting detector."""
    boxes_per_class: PositiveInt | None = None
    """Minimum number of boxes of every class in the few images to train on, which are drawn at random; by default all
    images are used."""
    title: str | None = None
    """Title of the row in pictures; by default its name."""


class FineTuningTable(Section):
    """A table of ways to fine-tune on a foreign domain x seeds: `tools/fine_tuning_table.py`."""

    start: Path
    """Table of `tools/ablate.py` that has the row of the starting detectors, relative to this file."""
    start_row: str
    records: Path
    """JSON lines file with one line per finished run, from which the table and the picture are made."""
    runs: Path
    """Folder of the run folders."""
    picture: Path
    """File of the picture."""
    data: Path = Path("data/foreign")
    """Folder of the drawn foreign data sets."""
    domain: Domain = "shapes"
    """Domain of the new data."""
    seeds: Seeds
    """Seeds of the starting detectors, of the new data and of the fine-tuning."""
    rows: dict[str, FineTuningRow]
    """Rows of the table by name, in order."""
