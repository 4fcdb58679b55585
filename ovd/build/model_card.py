"""The model card of a trained detector, filled from its config and its metrics."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ovd.build.trained import TrainedDetector
from ovd.engine.checkpoint import MANIFEST, read, step_of
from ovd.engine.early_stop import step_of_average
from ovd.engine.metric_records import last_evaluated_step
from ovd.evaluation.note import read_note
from ovd.files import sha256_of
from ovd.metric import is_known, per_cent

METRICS = "metrics.json"
NOT_MEASURED = "This detector was not evaluated: evaluate it on your data before you rely on it (`ovd eval`)."
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

An open-vocabulary object detector: it detects the classes that you name. It was trained with ovd on the CLIP model
{{ clip }}.

```python
from ovd.predictor import Predictor

predictor = Predictor.from_pretrained("{{ repository }}")
found = predictor("photo.jpg", ["umbrella", "coffee cup"])
```

## Training

| | |
|---|---|
{{ training }}

Classes that it was trained on: {{ classes }}.

## Measured

{{ measured }}

## Scores

{{ scores }}

## What it may not be used for

- It may give a class name to a similar object if the class itself is not in the image. Check this on images without it.
- Names far from the classes above were not measured, unless a table above says so.
- Do not use it for decisions about people, or where a missed or wrong box may cause harm, without an evaluation on data
  of that use.
- The license and limits of the CLIP model and of the training data also apply to this detector.
"""


def metrics_of(trained: TrainedDetector) -> dict[str, Any] | None:
    """Load the metrics of a detector's weights on its validation set; return None if there are none.

    They are in the metrics.json beside the weights, in that of the run's evaluation, or in that of the training that
    ended with these weights.
    """
    if trained.weights is None:
        return None
    checkpoint = trained.weights.parent
    beside = checkpoint / METRICS
    if beside.is_file():
        return json.loads(beside.read_text(encoding="utf-8"))
    run = checkpoint.parent
    # `ovd eval RUN` writes a note into the first, the quick start into the second.
    notes = {folder: read_note(folder) for folder in (run / "eval", run)}
    own = {folder: note.weights_sha256 for folder, note in notes.items() if note is not None and note.is_of_own_set}
    sha256 = sha256_of(trained.weights) if own else None
    for evaluation, noted_sha256 in own.items():
        if noted_sha256 is not None and noted_sha256 == sha256 and (evaluation / METRICS).is_file():
            return json.loads((evaluation / METRICS).read_text(encoding="utf-8"))
    is_of_training = notes[run] is None  # training leaves no note; an evaluation in the run folder replaces its metrics
    if not is_of_training or not (run / METRICS).is_file() or not (checkpoint / MANIFEST).is_file():
        return None
    measured = last_evaluated_step(run)
    of_run = read(checkpoint, check_all_files=False).notes
    if measured is None or measured != step_of_average(of_run, step_of(checkpoint)):
        return None
    return json.loads((run / METRICS).read_text(encoding="utf-8"))


def model_card(trained: TrainedDetector, repository: str) -> ModelCard:
    """Build the model card in the Hugging Face hub's format.

    Args:
        repository: argument of `from_pretrained` in the card's example; its last part is the title.
    """
    metrics, title = metrics_of(trained), Path(repository).name
    data = ModelCardData(
        library_name="ovd",
        pipeline_tag="zero-shot-object-detection",
        tags=["object-detection", "open-vocabulary"],
        model_name=title if metrics else None,
        eval_results=_eval_results(trained, metrics) if metrics else None,
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=title,
        repository=repository,
        clip=_clip_of(trained),
        training=_training_rows(trained),
        classes=", ".join(trained.classes) or "not recorded",
        measured=NOT_MEASURED if metrics is None else _measured(trained, metrics),
        scores=_scores(trained),
    )


def _clip_of(trained: TrainedDetector) -> str:
    """Return the name of the CLIP model and of its weights; local folders stay private."""
    name, weights = trained.config.clip.name, trained.config.clip.weights
    return f"`{Path(name).name}`" + (f" ({Path(weights).name})" if weights else "")


def _data_of(trained: TrainedDetector, part: str) -> str:
    """Return the file name of a data set's annotations, or the kind of its source; local folders stay private."""
    path = getattr(trained.config.data.source, f"{part}_annotations", None)
    return trained.config.data.source.kind if path is None else Path(path).name


def _training_rows(trained: TrainedDetector) -> str:
    config = trained.config
    done = None if trained.weights is None else step_of(trained.weights.parent)
    steps = f"{config.train.steps}" if done in (None, config.train.steps) else f"{done} of {config.train.steps}"
    rows = {
        "annotations": _data_of(trained, "train"),
        "classes": len(trained.classes),
        "steps": f"{steps}, of {config.train.batch_size} images each",
        "longest side of an image": f"{config.data.size} px",
        "seed": config.train.seed,
        "image-text pairs": "none" if config.data.pairs is None else "labeled by an earlier detector",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _eval_results(trained: TrainedDetector, metrics: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="zero-shot-object-detection",
            dataset_type=_data_of(trained, "val"),
            dataset_name=protocol,
            metric_type=name,
            metric_value=round(100 * metrics["metrics"][name], 2),
        )
        for protocol, names in metrics["protocols"].items()
        for name in names
        if is_known(metrics["metrics"][name])
    ]


def _measured(trained: TrainedDetector, metrics: dict[str, Any]) -> str:
    lines = [
        f"One training run (seed {trained.config.train.seed}), so the spread is not known. Percent, on "
        f"{_data_of(trained, 'val')}, computed by {metrics['engine']}.",
        "",
    ]
    for protocol, names in metrics["protocols"].items():
        values = [per_cent(metrics["metrics"][name]) for name in names]
        lines += [
            f"**{protocol}**",
            "",
            "| " + " | ".join(names) + " |",
            "|" + "---|" * len(names),
            "| " + " | ".join(values) + " |",
            "",
        ]
    return "\n".join([*lines, *(f"- {note}" for note in metrics["notes"])])


def _scores(trained: TrainedDetector) -> str:
    if trained.threshold is None:
        return "Scores are not calibrated: they rank boxes, but are not probabilities. Choose a threshold on your data."
    return (
        "A score is the probability that the box is correct, calibrated on images held out of the training. The "
        f"threshold {trained.threshold:.2f} had the highest expected F1 on them."
    )
