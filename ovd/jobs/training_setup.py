"""Build and check the parts of a training before its slow steps, for the training itself and for its preflight.

The text bank, which takes longest, is not part of it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ovd.build.batches import training_batches
from ovd.build.learner import Learner, build_learner
from ovd.build.pairs import load_labeled_pairs
from ovd.build.text import check_bank
from ovd.config.training import TrainConfig
from ovd.distributed import all_gather
from ovd.engine.checkpoint import Checkpoint
from ovd.files import sha256_of
from ovd.jobs.resume import check_resumed
from ovd.jobs.training_sets import TrainingSets
from ovd.jobs.training_start import ChosenStart, choose_start
from ovd.selftrain.labeled_pairs import LabeledPairs
from ovd.selftrain.labels import label_files
from ovd.selftrain.ledger import check_labels, labels_fingerprint
from ovd.structures import Batch


@dataclass(frozen=True)
class TrainingSetup:
    """Parts of a training, without its texts."""

    sets: TrainingSets
    learner: Learner
    start: ChosenStart
    pairs: LabeledPairs | None
    """Labeled image-text pairs; None without `data.pairs`."""
    data_hashes: Mapping[str, str]
    """Hashes of the data that the training depends on, by name; config and start are not included."""
    batches_from: Callable[[int], Iterator[Batch]]
    """Pure function that returns the batches from a given step on."""


def build_training_setup(
    config: TrainConfig, checkpoint: Checkpoint | None, sets: TrainingSets, *, verifies_labels: bool = False
) -> TrainingSetup:
    """Set the seed, build the parts of a training, and check everything that can stop it before its first step.

    Args:
        checkpoint: the checkpoint that the run resumes from; None for a new run.
        verifies_labels: whether to read every label file and compare its hash.

    Raises:
        ValueError: a part does not fit; the message says which.
    """
    torch.manual_seed(config.train.seed)  # for the initial weights
    learner = build_learner(config, num_classes=len(sets.trained.categories))
    start = choose_start(config, checkpoint, learner)
    pairs = None
    if config.data.pairs is not None:
        first_id = len(sets.trained.categories)
        pairs = load_labeled_pairs(config.data.pairs, config.data.source, learner.clip, first_id=first_id)
        if verifies_labels:
            check_labels(label_files(config.data.pairs.labels))
    check_bank(config, learner.clip, sets.trained)
    data_hashes = _hashes(config, sets, pairs)
    if checkpoint is not None:
        check_resumed(checkpoint, config, learner.clip, data_hashes)
    batches_from = training_batches(
        config, sets.trained, pairs, first_samples=start.first_samples, size_divisor=learner.detector.size_divisor
    )
    return TrainingSetup(sets, learner, start, pairs, data_hashes, batches_from)


def _hashes(config: TrainConfig, sets: TrainingSets, pairs: LabeledPairs | None) -> dict[str, str]:
    """Return the hashes of the data that a training depends on, by name; config and start are not included.

    The validation set is included with `train.patience`, which depends on it.

    Raises:
        ValueError: the ranks have read different data.
    """
    data = {"annotations": sets.trained.fingerprint()}
    if config.data.pairs is not None and pairs is not None:
        data["labels"] = f"{labels_fingerprint(label_files(config.data.pairs.labels))}-{pairs.fingerprint()}"
    if config.train.patience and sets.validation is not None:
        data["validation set"] = sets.validation.fingerprint()
    for name, file in (("text bank", config.bank.file), ("paraphrases", config.bank.paraphrases)):
        if file is not None:
            data[name] = sha256_of(file)
    hashes_by_rank = all_gather(data)
    if any(other != data for other in hashes_by_rank):
        raise ValueError(f"the ranks have read different data, which may still be being written: {hashes_by_rank}")
    return data
