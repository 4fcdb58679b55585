"""Fine-tune a trained detector on other data, and evaluate the gain on the new and the loss on the original data.

With `expert` in the config, the result is an expert, and the detector itself stays unchanged. Otherwise the result is
one set of weights, and the detectors before and after fine-tuning and the average of their weights are evaluated.
Evaluations use the validation set of the new data and that of the original training.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovd.build.data import check_all_exist, hold_out, load_training_index, load_validation_index
from ovd.build.trained import TrainedDetector, describe_expert_run, find_checkpoint, load_detector
from ovd.config.training import EvalSection, TrainConfig
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataError
from ovd.distributed import barrier, broadcast, is_main, process_group
from ovd.engine.ensemble import detector_differences, save_ensemble
from ovd.evaluation.note import EvaluationNote, read_note
from ovd.experts.folder import read_expert, write_description
from ovd.experts.group import NO_EXPERTS, ExpertGroup
from ovd.files import refuse_missing_run, write_json
from ovd.format_count import format_count
from ovd.jobs.evaluate import evaluate_run
from ovd.jobs.experts import save_expert
from ovd.jobs.resume import check_same_data, check_same_init, check_same_run
from ovd.jobs.run_folder import is_finished, latest_on_all_ranks
from ovd.jobs.train import train_from_config
from ovd.join_first import join_first
from ovd.metric import per_cent
from ovd.selftrain.labels import label_files
from ovd.selftrain.ledger import labels_fingerprint
from ovd.text.names import name_key
from ovd.warn import warn

METRICS = ("AP", "AP50", "APr", "APc", "APf")


@dataclass(frozen=True)
class Outcome:
    """Metrics of one detector, 0 to 1."""

    detector: str
    """Detector measured: `before`, `expert` (the detector with its expert), `after` or `ensemble`."""
    new: dict[str, float]
    """Metrics on the new data; empty without a validation set."""
    kept: dict[str, float]
    """Metrics on the validation set of the detector that fine-tuning started from; empty if it is left out."""


@dataclass(frozen=True)
class _Validation:
    """Validation sets on which the detectors of a fine-tuning are evaluated."""

    config: TrainConfig
    """Config of the fine-tuning."""
    new: AnnotationIndex | None
    """Validation set of the new data; None if there is none."""
    original: AnnotationIndex | None
    """Validation set of the detector to start from; None if it is left out."""

    def outcome(self, name: str, path: Path, *, experts: ExpertGroup = NO_EXPERTS) -> Outcome:
        """Evaluate one detector on both sets."""
        # Fine-tuned detectors are run with this call's settings, which may differ from those in their checkpoints.
        options = None if path == self.config.init_from else self.config.eval

        def metrics(of: str, index: AnnotationIndex | None) -> dict[str, float]:
            output = self.config.output / f"eval-{of}-{name}"
            return {} if index is None else _evaluate(self.config, path, index, output, experts, options)

        return Outcome(name, metrics("new", self.new), metrics("kept", self.original))


def fine_tune(config: TrainConfig, *, weight: float, measures_kept: bool = True) -> tuple[Outcome, ...]:
    """Train, make the expert or the average, and evaluate; steps that an earlier call finished are not repeated.

    The evaluations and `fine_tuning.json` are written to the run folder, the expert to its subfolder `expert`, and the
    averaged detector to its subfolder `ensemble`.

    Args:
        config: config of the fine-tuning; `init_from` is the detector to start from.
        weight: weight of the fine-tuned detector in the average, 0 to 1; not used for an expert. With 1 there is no
            average.
        measures_kept: whether to evaluate on the validation set of the detector to start from, which must then exist.

    Raises:
        ValueError: `init_from` is missing or is the run of an expert, the weight is not in 0..1, a validation set or
            one of its images is missing, the settings of the detector to start from differ from the config's so that
            the two cannot be averaged, an expert has another image size so that it shares no features with it, or an
            earlier call had other settings, other boxes or another weight.
    """
    with process_group():
        return _fine_tune(config, weight, measures_kept)


def _fine_tune(config: TrainConfig, weight: float, measures_kept: bool) -> tuple[Outcome, ...]:
    if config.init_from is None:
        raise ValueError("fine-tuning needs a trained detector to start from; set init_from to its run folder")
    if not 0 <= weight <= 1:
        raise ValueError(f"--weight is {weight:g}; it must be from 0 to 1")
    refuse_missing_run(config.init_from, "init_from")
    start = load_detector(config.init_from, config.train.device, warns=False)
    _check_start(start.config, config.init_from, config)
    original = _load_original_validation(start, config.init_from) if measures_kept else None
    new = load_validation_index(config)
    if new is not None:
        check_all_exist(new, config.data.source, all_needed=True)
    elif is_main():
        warn("there is no validation set (data.source.val_annotations), so the gain on the new data is not measured")

    index = _finish_training(config)
    validation = _Validation(config, new, original)
    if config.expert is not None:
        outcomes = _evaluate_expert(validation, start, index)
    else:
        outcomes = _evaluate_averaged(validation, config.init_from, weight)
    if is_main():
        write_json(config.output / "fine_tuning.json", [vars(outcome) for outcome in outcomes])
        if not _is_measured(outcomes):
            made = "the expert is in" if config.expert is not None else "the fine-tuned detector is"
            print(f"{made} {config.output}")
    return outcomes


def _finish_training(config: TrainConfig) -> AnnotationIndex:
    """Train, resume a training, or check that a finished one has this config and data; return its training set.

    Raises:
        ValueError: an earlier call had another config, another detector to start from or other boxes.
    """
    found = latest_on_all_ranks(config.output)
    if found is not None:
        check_same_run(found.config, config)
        check_same_init(found, config)
    index = load_training_index(config)
    if found is not None and is_finished(found, config):
        trained_on, _ = hold_out(config, index)
        stored = found.notes.data
        check_same_data(stored, {"annotations": trained_on.fingerprint(), **_labels_now(config, stored)}, config.output)
    else:
        train_from_config(config, resume=found is not None, evaluate=config.train.eval_every > 0)
    return index


def _check_start(start: TrainConfig, path: Path, config: TrainConfig) -> None:
    """Check that a fine-tuning can start from a run.

    Args:
        start: config of that run.
        path: folder of that run.

    Raises:
        ValueError: it is the run of an expert, its detector has other settings, or an expert has another image size.
    """
    if start.expert is not None:
        raise ValueError(f"{describe_expert_run(path, start)}. Start from the detector: init_from={start.init_from}")
    different = detector_differences(start.model_dump(mode="json"), config.model_dump(mode="json"))
    if different:
        raise ValueError(f"the config's detector differs from that of {path} in: {'; '.join(different)}")
    if config.expert is not None and config.data.size != start.data.size:
        raise ValueError(
            f"an expert needs the image size of its detector: data.size is {config.data.size}, but "
            f"{start.data.size} in {path}"
        )


def _labels_now(config: TrainConfig, stored: Mapping[str, str]) -> dict[str, str]:
    """Return the current fingerprint of the labels of a finished training; empty if it had none or they are gone."""
    if config.data.pairs is None or "labels" not in stored or not config.data.pairs.labels.is_dir():
        return {}
    now = labels_fingerprint(label_files(config.data.pairs.labels))
    return {"labels": stored["labels"] if stored["labels"].startswith(now) else now}


def _load_original_validation(start: TrainedDetector, path: Path) -> AnnotationIndex:
    """Load the validation set of the detector to start from, and check that its image files exist.

    Raises:
        ValueError: it has no validation set, or the set is not on this machine.
    """
    way_out = "use --no-kept to skip this evaluation"
    try:
        original = load_validation_index(start.config)
        if original is not None:
            check_all_exist(original, start.config.data.source, all_needed=True)
    except DataError as error:
        raise DataError(error.code, f"{error}; this is the validation set of {path}; {way_out}") from None
    if original is None:
        raise ValueError(f"{path} has no validation set; {way_out}")
    return original


def _evaluate_expert(validation: _Validation, start: TrainedDetector, index: AnnotationIndex) -> tuple[Outcome, ...]:
    """Write the expert of a finished training; evaluate the detector without and with it.

    Args:
        index: the expert's training set.
    """
    config = validation.config
    assert config.init_from is not None
    folder = config.output / "expert"
    if is_main():
        tuned = load_detector(config.output, config.train.device, warns=False)
        save_expert(folder, config, start, tuned, index)
    barrier()
    experts = ExpertGroup((folder,))
    known = set(map(name_key, start.classes))
    forms = [form for category in index.categories for form in (category.name, *category.synonyms)]
    shared = list(dict.fromkeys(form for form in forms if name_key(form) in known))
    if shared and is_main():
        print(
            f"the expert now detects {format_count(len(shared), 'name')} that the detector was trained on: "
            f"{join_first(shared)}"
        )
    outcomes = (
        validation.outcome("before", config.init_from),
        validation.outcome("expert", config.init_from, experts=experts),
    )
    if outcomes[1].new and is_main():
        write_description(folder, replace(read_expert(folder).description, metrics={"new": outcomes[1].new}))
    return outcomes


def _evaluate_averaged(validation: _Validation, start: Path, weight: float) -> tuple[Outcome, ...]:
    """Average the weights before and after fine-tuning, unless `weight` is 1; evaluate all the detectors."""
    after = validation.config.output
    stages = {"before": start, "after": after}
    if weight != 1:
        stages["ensemble"] = _average_weights(start, after, weight)
    return tuple(validation.outcome(name, path) for name, path in stages.items())


def _average_weights(start: Path, after: Path, weight: float) -> Path:
    """Return the folder of the averaged detector, after writing it if it does not exist.

    Raises:
        ValueError: the folder holds something else, or an average of other checkpoints or with another weight.
    """
    ensemble = after / "ensemble"
    averaged = latest_on_all_ranks(ensemble)
    if averaged is not None:
        sources = averaged.notes.ensemble
        if sources is None:
            raise ValueError(f"{ensemble} contains a run that is not an average; move it away")
        if sources.weight != weight:
            raise ValueError(
                f"{ensemble} was averaged with weight {sources.weight:g}, not {weight:g}; "
                "for another weight, use ovd ensemble with a new folder"
            )
        for noted, path in ((sources.first_sha256, start), (sources.second_sha256, after)):
            if noted not in (None, find_checkpoint(path).weights_sha256()):
                raise ValueError(f"{ensemble} was averaged from older weights of {path}; delete it to average again")
    if averaged is None and is_main():
        save_ensemble(find_checkpoint(start), find_checkpoint(after), weight=weight, output=ensemble)
    barrier()
    return ensemble


def format_outcomes(outcomes: tuple[Outcome, ...]) -> str:
    """Format outcomes as a table in percent, with - where there is no true box; or say why nothing was measured."""
    if not _is_measured(outcomes):
        return (
            "nothing was evaluated: the new data have no validation set (data.source.val_annotations), and "
            "--no-kept skips the validation set of the starting detector"
        )
    return "\n".join(_lines(outcomes))


def _is_measured(outcomes: tuple[Outcome, ...]) -> bool:
    """Return whether there are metrics on any validation set."""
    return any(outcome.new or outcome.kept for outcome in outcomes)


def _lines(outcomes: tuple[Outcome, ...]) -> Iterator[str]:
    columns = [
        (which, metric) for which in ("new", "kept") for metric in METRICS if metric in getattr(outcomes[0], which)
    ]
    yield "detector  " + "".join(f"{f'{which} {metric}':>11}" for which, metric in columns)
    for outcome in outcomes:
        values = (getattr(outcome, which)[metric] for which, metric in columns)
        yield f"{outcome.detector:10}" + "".join(f"{per_cent(value):>11}" for value in values)


def _evaluate(
    config: TrainConfig,
    path: Path,
    index: AnnotationIndex,
    output: Path,
    experts: ExpertGroup,
    options: EvalSection | None,
) -> dict[str, float]:
    """Evaluate a detector on a data set, unless `output` has the metrics of the same weights, data and settings.

    Args:
        options: evaluation settings that replace those of the detector's own config; None to keep these.
    """
    done = output / "metrics.json"
    inputs = _evaluation_inputs(path, index, experts, options) if is_main() else {}
    before = read_note(output) if is_main() else None
    is_done = before is not None and before.inputs == inputs and done.exists()
    if not broadcast(is_done):
        if is_main():
            print(f"{path}{' with the expert' if experts.folders else ''} on {index.path}")
        trained = load_detector(path, config.train.device, experts=experts, warns=False)
        if options is not None:
            trained = replace(trained, config=trained.config.model_copy(update={"eval": options}))
        evaluate_run(trained, output=output, index=index, note=EvaluationNote(inputs=inputs))
    return broadcast(json.loads(done.read_text())["metrics"] if is_main() else {})


def _evaluation_inputs(
    path: Path, index: AnnotationIndex, experts: ExpertGroup, options: EvalSection | None
) -> dict[str, Any]:
    """Return hashes and settings that identify the weights, data and options of an evaluation by their content."""
    found = find_checkpoint(path)
    descriptions = [read_expert(folder).description for folder in experts.folders]
    return {
        "detector": str(found.folder),
        "weights_sha256": found.weights_sha256(),
        "annotations": str(index.path),
        "fingerprint": index.fingerprint(),  # one data.yaml describes several sets
        "truths": [truth.fingerprint() for truth in (index.truth, index.exhaustive_truth) if truth is not None],
        "images": _state_of_images(index),
        "eval": found.config["eval"] if options is None else options.model_dump(mode="json"),
        "experts": [{"sha256": one.sha256, "eval": one.config["eval"]} for one in descriptions],
    }


def _state_of_images(index: AnnotationIndex) -> str:
    """Hash the modification time and size of every image file; missing files are reported by the evaluation itself."""
    paths = [index.encoded(image) for image in range(len(index))]
    states = [path.stat() if os.path.exists(path) else None for path in paths]  # False if the name is too long
    content = repr([state and (state.st_size, state.st_mtime_ns) for state in states])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
