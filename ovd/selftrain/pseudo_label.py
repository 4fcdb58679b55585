"""The pseudo-labeling job: a teacher labels shards of image-text pairs, with a labels file and a ledger per shard.

A shard is labeled completely or not at all, and its files depend only on the shard and the settings: not on how the
shards are divided among workers, nor on where an earlier worker was killed. The ledger is written last and marks a
shard as done.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ovd.config.labeling import LabelOptions
from ovd.config_files import describe_differences
from ovd.data.pairs.manifest import ManifestEntry, list_shards
from ovd.data.pairs.tar import PairShards
from ovd.data.report import DataReport
from ovd.fault import Fault
from ovd.files import remove_stale_temporaries, sha256_of
from ovd.format_count import format_count
from ovd.progress import progress
from ovd.selftrain.decoded_pairs import DecodedPair, batches_of_shards, count_image, decode_ahead
from ovd.selftrain.labels import FORMAT, TeacherBoxes, check_header_size, labels_path, read_labels, write_labels
from ovd.selftrain.ledger import LabelCounts, Ledger, ledger_path, read_ledger, total_counts
from ovd.selftrain.pair_queries import MAX_CAPTION_CHARACTERS, PairQueries
from ovd.selftrain.pair_result import NO_BOXES, PairResult, count_results, first_skipped, to_labels
from ovd.selftrain.teacher import Teacher, TextVariants


def shards_of_worker(
    folder: Path, *, rank: int = 0, world: int = 1, num_shards: int | None = None
) -> dict[str, ManifestEntry | None]:
    """List the shards that a worker labels, in the form of `list_shards`.

    Args:
        rank, world: number of the worker, and number of workers; it labels the shards rank, rank + world, ...
        num_shards: number of the folder's first shards that the workers share; all by default.

    Raises:
        ValueError: the rank is not in 0 to world - 1.
        DataError: F13, as `list_shards`.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} workers: ranks must be from 0 to world - 1")
    return dict(islice(list_shards(folder).items(), rank, num_shards, world))


def label_shards(
    folder: Path,
    output: Path,
    teacher: Teacher,
    texts: TextVariants,
    options: LabelOptions,
    *,
    listed: Mapping[str, ManifestEntry | None] | None = None,
    report: DataReport | None = None,
) -> LabelCounts:
    """Write `<shard>.safetensors` (labels.py) and, once that is complete, the ledger `<shard>.json` for every shard.

    A shard that has both is skipped; a labels file that does not match its ledger is written again.

    Args:
        texts: encoder of the queries for the labels file, with the text tower that students are trained with.
        listed: the shards to label (`shards_of_worker`); all shards of the folder by default.
        report: counts of the images; by default one that stops the job if too many cannot be read.

    Returns:
        The counts of these shards, including those labeled before.

    Raises:
        ValueError: a shard was labeled with other settings before, has too much text for its labels file, or the
            teacher outputs NaN or infinity.
        DataError: F13, F14 a shard is damaged; the code of an image fault if 100 images in a row, or 1 % of the
            images of these shards and at least 5, cannot be read.
    """
    labeler = _ShardLabeler(output, teacher, texts, options)
    listed = shards_of_worker(folder) if listed is None else listed
    output.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(output)

    sha256 = {name: entry.sha256 if entry else sha256_of(folder / name) for name, entry in listed.items()}
    report = DataReport() if report is None else report
    num_before = report.num_seen()
    done = {name: labeler.read_finished_shard(name, sha256[name], report) for name in listed}
    counts = [of_shard for of_shard in done.values() if of_shard is not None]
    if counts:
        print(f"{output}: {len(counts)} of {format_count(len(listed), 'shard')} already labeled")

    shards = PairShards(folder, only=[name for name in listed if done[name] is None], listed=listed)
    if shards.rejected or shards.num_failed:
        print(f"{folder}: {shards.describe_rejected()}")
    num_pairs = len(shards) + sum(of_shard.pairs for of_shard in counts)
    decoded = iter(progress(decode_ahead(shards, options.batch_size), len(shards), "pairs"))
    batches = batches_of_shards(decoded, shards, options.batch_size, report, num_pairs)
    for name in shards.file_names:
        counts.append(labeler.label_shard(shards, name, sha256[name], batches))
    assert next(decoded, None) is None
    total = total_counts(counts)
    assert total.pairs == num_pairs == report.num_seen() - num_before
    return total


def resolve_worker(rank: int | None, world: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return a worker's rank and the number of workers: as given, else RANK and WORLD_SIZE (torchrun), else 0 and 1.

    Raises:
        ValueError: only one of the two is given, or a variable is not a number.
    """
    if (rank is None) != (world is None):
        raise ValueError("--rank and --world must be given together")
    if rank is not None and world is not None:
        return rank, world
    if ("RANK" in environment) != ("WORLD_SIZE" in environment):
        raise ValueError(
            "only one of the environment variables RANK and WORLD_SIZE is set; set both, or give --rank and --world"
        )
    given = [environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")]
    if not all(map(str.isdecimal, given)):
        raise ValueError(
            f"the environment variables RANK and WORLD_SIZE are {given[0]!r} and {given[1]!r}; set both to whole "
            "numbers, or give --rank and --world"
        )
    return int(given[0]), int(given[1])


@dataclass(frozen=True)
class _ShardLabeler:
    """The teacher, the texts, the options and the output folder of a labeling job."""

    output: Path
    teacher: Teacher
    texts: TextVariants
    options: LabelOptions

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings that the labels of a shard depend on."""
        classes = json.dumps(self.options.classes).encode()
        templates = self.texts.templates
        return {
            "format": FORMAT,
            "teacher": self.teacher.name,
            "text_tower": self.texts.text_tower,
            "templates": None if templates is None else list(templates),
            **self.options.model_dump(),
            "classes": f"{len(self.options.classes)} names, sha256 {hashlib.sha256(classes).hexdigest()}",
            "max_caption_characters": MAX_CAPTION_CHARACTERS,
        }

    def read_finished_shard(self, shard: str, shard_sha256: str, report: DataReport) -> LabelCounts | None:
        """Read the counts of a labeled shard; return None if the shard has to be labeled, or labeled again.

        Args:
            report: report that the images of a labeled shard are counted in.

        Raises:
            ValueError: the shard was labeled with other settings.
        """
        labels_file = labels_path(self.output, shard)
        path = ledger_path(labels_file)
        if not path.exists():
            return None
        ledger = read_ledger(labels_file)
        before = {**ledger.settings, "shard_sha256": ledger.shard_sha256}
        now = {**self.settings, "shard_sha256": shard_sha256}
        if different := describe_differences(before, now):
            raise ValueError(f"{path} was made with different settings: {different}; give another --output")
        if not labels_file.exists() or sha256_of(labels_file) != ledger.labels_sha256:
            print(f"{labels_file} is missing or does not match its ledger; labeling {shard} again")
            return None
        labels = read_labels(labels_file)
        for key, reason, (height, _) in zip(labels.keys, labels.reasons, labels.image_sizes, strict=True):
            count_image(report, f"{shard}:{key}", reason if height == 0 else None)
        return ledger.counts

    def label_shard(
        self, shards: PairShards, name: str, shard_sha256: str, batches: Iterator[list[DecodedPair]]
    ) -> LabelCounts:
        """Label the next shard of `batches`, and write its labels and then its ledger.

        Raises:
            ValueError: the shard has too much text for its labels file, or the teacher outputs NaN or infinity.
        """
        labels_file = labels_path(self.output, name)
        positions = shards.positions(name)
        pair_queries = PairQueries.from_captions([shards.caption(position) for position in positions], self.options)
        keys = [shards.key(position) for position in positions]
        check_header_size(labels_file, keys=keys, reasons=pair_queries.reasons, texts=pair_queries.distinct)
        variants = self.texts.load(pair_queries.distinct)
        results: list[PairResult] = []
        while len(results) < len(positions):
            batch = next(batches)
            rows = slice(len(results), len(results) + len(batch))
            results += self._label_batch(batch, pair_queries.queries[rows], pair_queries.reasons[rows])
        labels_sha256 = write_labels(
            labels_file,
            to_labels(results, pair_queries.distinct),
            index=shards.index(name),
            variants=variants,
            text_tower=self.texts.text_tower,
            settings=self.settings,
        )
        counts = count_results(results, len(pair_queries.distinct), self.texts.num_long)
        Ledger(name, shard_sha256, labels_sha256, self.settings, counts, first_skipped(results)).write(labels_file)
        return counts

    def _label_batch(
        self, batch: list[DecodedPair], pair_queries: Sequence[tuple[str, ...]], caption_reasons: Sequence[Fault | None]
    ) -> Iterator[PairResult]:
        teacher_inputs = [
            (item.pixels, queries)
            for item, queries in zip(batch, pair_queries, strict=True)
            if item.pixels is not None and queries
        ]
        results = iter(
            self.teacher.detect([pixels for pixels, _ in teacher_inputs], [queries for _, queries in teacher_inputs])
        )
        for item, queries, caption_reason in zip(batch, pair_queries, caption_reasons, strict=True):
            reason, where = item.reason or caption_reason, f"{self.teacher.name}, image of {item.key}"
            found = NO_BOXES if reason else _checked(next(results), len(queries), where)
            order = np.argsort(-found.scores, kind="stable")
            order = order[found.scores[order] > self.options.score_threshold]
            kept = order[_within_limit(found.texts[order], self.options.max_boxes)]
            yield PairResult(
                key=item.key,
                reason=reason,
                image_size=(0, 0) if item.pixels is None else item.pixels.shape[:2],
                queries=() if reason else queries,
                found=TeacherBoxes(found.boxes[kept], found.scores[kept], found.texts[kept]),
                is_capped=len(order) > len(kept),
            )


def _within_limit(texts: Int64[np.ndarray, " N"], count: int) -> Int64[np.ndarray, " K"]:
    """Return the rows of an image's boxes to keep: the `count` best, and in any case the best box of each text.

    Args:
        texts: text of each box, best first.
    """
    is_kept = np.arange(len(texts)) < count
    is_kept[np.unique(texts, return_index=True)[1]] = True
    return np.flatnonzero(is_kept)


def _checked(found: TeacherBoxes, num_queries: int, where: str) -> TeacherBoxes:
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise ValueError(f"{where}: a box or score is NaN; the teacher's weights contain NaN or infinity")
    assert ((found.texts >= 0) & (found.texts < num_queries)).all(), where
    return found
