"""Find what would stop or spoil a training before it starts, in data sets, image files, vocabulary and pairs."""

from collections.abc import Sequence

import numpy as np
import torch

from ovd.build.batches import samples_per_step, small_training_objects
from ovd.config.training import TrainConfig
from ovd.data.check import check_images, describe, describe_findings
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.data.verdict import evaluation_verdict, training_verdict
from ovd.distributed import device_of_rank, world_size
from ovd.format_count import format_count
from ovd.jobs.prerequisites import check_prerequisites
from ovd.jobs.resume import find_run
from ovd.jobs.run_folder import check_run_folder
from ovd.jobs.training_sets import load_training_sets, warn_of_absent_classes, warn_of_trained_images
from ovd.jobs.training_setup import build_training_setup
from ovd.text.names import isin_names

_NUM_NAMED = 10


def preflight(config: TrainConfig, *, resume: bool = False, strict_resume: bool = False) -> bool:
    """Check everything that a training reads, print a report, and return whether the training would run to its end.

    Every image of both sets is decoded, in threads and with a progress bar, which takes minutes for 100,000 images. The
    detector is built with its initial weights; the text bank, which takes longest, is not built.

    Args:
        resume: whether the training would be resumed.
        strict_resume: whether a resumed training would stop if its newest checkpoint is damaged.

    Raises:
        ValueError: the training would stop before its first step; the message is the training's own.
    """
    check_prerequisites(config)
    checkpoint = find_run(config, resume=resume, strict_resume=strict_resume)
    check_run_folder(config.output)
    device_of_rank(config.train.device)
    torch.set_num_threads(config.train.threads)
    report, validation_report = DataReport(stops=False), DataReport(stops=False)
    sets = load_training_sets(config, report, validation_report)
    index, trained, held_out, validation = sets.whole, sets.trained, sets.held_out, sets.validation
    setup = build_training_setup(config, checkpoint, sets, verifies_labels=True)
    if (pairs := setup.pairs) is not None:
        print(f"{format_count(len(pairs), 'image-text pair')} with {format_count(len(pairs.texts), 'text')}")
    setup.batches_from(0)

    print(f"training set {index.path}")
    small = small_training_objects(config, index)
    usable = check_images(index, report, small)
    print(describe(index, report, usable))
    images_of_small = index.image_ids[index.boxes.images_of_values()[small]]
    num_learned = len(usable.boxes.values) + len(usable.crowd_boxes.values)
    num_learned -= int(np.isin(images_of_small, usable.image_ids).sum())
    verdicts = [training_verdict(index, report, num_learned, has_option=False)]  # check_all_exist named the option
    if validation is not None:
        print(f"\nvalidation set {validation.path}")
        check_images(validation, validation_report)
        print("\n".join(describe_findings(validation_report)))
        assert validation.truth is not None
        verdicts.append(evaluation_verdict(validation, validation_report, validation.truth))
        print(f"\n{describe_vocabulary(index, validation)}")
        warn_of_trained_images(trained, validation)
    samples, paired = (number * config.train.steps for number in samples_per_step(config))
    print(
        f"{format_count(config.train.steps, 'step')} on {format_count(world_size(), 'rank')} draw {samples:,} images, "
        f"{samples / max(len(trained), 1):.3g} times the training set of {len(trained):,}"
    )
    if pairs is not None:
        print(f"and {paired:,} image-text pairs, {paired / max(len(pairs), 1):.3g} times the labeled ones")
    if held_out is not None:
        print(
            f"{len(held_out.index):,} of the images and {int(held_out.names.sum()):,} of the names are held out "
            "(train.calibration)"
        )
    warn_of_absent_classes(config, trained)
    print("\n".join(verdict.summary for verdict in verdicts))
    return not any(verdict.stops for verdict in verdicts)


def describe_vocabulary(training: AnnotationIndex, validation: AnnotationIndex) -> str:
    """Describe which names are trained on, and which are evaluated without being trained on."""
    trained, asked = training.names, validation.names
    new, unused = _missing(asked, trained), _missing(trained, asked)
    return (
        f"{format_count(len(trained), 'name')} trained on, {len(asked):,} evaluated\n"
        f"{len(new):,} evaluated, but not trained on{_named(new)}\n"
        f"{len(unused):,} trained on, but not evaluated{_named(unused)}"
    )


def _missing(names: Sequence[str], others: Sequence[str]) -> list[str]:
    return sorted(name for name, occurs in zip(names, isin_names(names, others), strict=True) if not occurs)


def _named(names: list[str]) -> str:
    return f": {', '.join(names[:_NUM_NAMED])}{', ...' if len(names) > _NUM_NAMED else ''}" if names else ""
