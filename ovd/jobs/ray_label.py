"""Label image-text pairs on a Ray cluster: one actor per GPU, which labels one shard after another.

The files of a shard depend only on the shard and the settings, so they are byte-identical to those of the plain job
(`pseudo_label_run`). If an actor or its node dies, another actor labels its shard and writes the files again. All nodes
must see the run, the shards and the output under the same paths.
"""

import os
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ovd.build.trained import load_detector
from ovd.data.pairs.manifest import ManifestEntry
from ovd.data.pairs.tar import PairShards
from ovd.data.report import DataReport
from ovd.experts.group import NO_EXPERTS, ExpertGroup
from ovd.extras import optional
from ovd.format_count import format_count
from ovd.jobs.label_pairs import LabelRequest, build_labeler
from ovd.selftrain.decoded_pairs import stop_if_too_many_unreadable
from ovd.selftrain.ledger import LabelCounts, total_counts
from ovd.selftrain.pseudo_label import shards_of_worker

MAX_TRIES = 3
"""Number of actors that die on one shard before the job stops, since the shard itself may be the cause."""


@dataclass(frozen=True)
class RayRequest:
    """Settings that every actor needs."""

    run: Path
    """Run folder of the teacher, which each actor loads."""
    labeling: LabelRequest
    experts: ExpertGroup = NO_EXPERTS
    threads: int = 2
    """CPU threads of an actor."""
    num_shards: int | None = None
    """Number of shards of the folder to label, from the first; None for all."""


class ShardWorker:
    """Actor that loads the teacher once, and then labels shards."""

    def __init__(self, request: RayRequest):
        torch.set_num_threads(request.threads)
        device = "cuda" if torch.cuda.is_available() else None
        trained = load_detector(request.run, device, experts=request.experts)
        self._labeler = build_labeler(trained, request.labeling)

    def label(self, name: str, entry: ManifestEntry | None) -> tuple[LabelCounts, DataReport]:
        """Label one shard; how many images may be unreadable is decided by the job, over all shards.

        Args:
            entry: the shard's entry in the folder's manifest, if there is one.
        """
        report = DataReport(stops=False)
        return self._labeler.label({name: entry}, report=report), report


def label_on_ray(request: RayRequest, *, address: str | None, workers: int | None = None) -> LabelCounts:
    """Label all shards on a cluster; shards that are labeled already stay as they are.

    Args:
        address: address of the cluster, or "auto" for the one that this machine belongs to; None starts one on this
            machine.
        workers: number of actors; by default one per GPU, or without GPUs one per `threads` CPU cores.

    Raises:
        ValueError: the package ray is missing, or as raised by `label_shards`.
        RuntimeError: an actor cannot start, or three actors died on one shard.
    """
    ray = optional("ray", "ray")
    pairs = request.labeling.pairs
    listed = shards_of_worker(pairs, num_shards=request.num_shards)
    shards = PairShards(pairs, only=listed, listed=listed)
    if shards.rejected or shards.num_failed:
        print(f"{pairs}: {shards.describe_rejected()}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        job = _RayJob(ray, request, listed, len(shards))
        return job.run(job.num_workers(workers))
    finally:
        ray.shutdown()


class _RayJob:
    """A labeling job: the shards left, and the shard that each actor labels."""

    def __init__(self, ray: Any, request: RayRequest, listed: Mapping[str, ManifestEntry | None], num_pairs: int):
        self._ray = ray
        self._request = request
        self._listed = listed
        self._num_pairs = num_pairs
        self._report = DataReport(stops=not request.labeling.skip_unreadable)
        self._left = deque(listed)
        self._tries = Counter[str]()
        self._running: dict[Any, tuple[Any, str]] = {}
        """Actor and shard of each pending result."""

    def num_workers(self, wanted: int | None) -> int:
        """Return the number of actors, at most one per shard."""
        resources = self._ray.cluster_resources()
        fitting = int(resources.get("GPU", 0)) or max(1, int(resources.get("CPU", 1)) // self._request.threads)
        return min(wanted or fitting, len(self._listed))

    def run(self, num_workers: int) -> LabelCounts:
        """Label all shards."""
        for _ in range(num_workers):
            self._assign_shard(self._new_actor())
        counts: list[LabelCounts] = []
        with tqdm(total=self._num_pairs, desc=f"pairs on {format_count(num_workers, 'worker')}", unit=" images") as bar:
            while self._running:
                (ready,), _ = self._ray.wait(list(self._running), num_returns=1)
                actor, name = self._running.pop(ready)
                try:
                    shard_counts, report = self._ray.get(ready)
                except self._ray.exceptions.RayActorError as error:
                    if getattr(error, "actor_init_failed", False):
                        raise RuntimeError(f"a worker could not start: {str(error).splitlines()[-1]}") from error
                    self._requeue_shard(name, error)
                    self._assign_shard(self._new_actor())
                    continue
                except self._ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                counts.append(shard_counts)
                bar.update(shard_counts.pairs)
                self._report.add(report)
                stop_if_too_many_unreadable(self._report, self._num_pairs, self._request.labeling.pairs)
                self._assign_shard(actor)
        return total_counts(counts)

    def _new_actor(self) -> Any:
        num_gpus = 1 if self._ray.cluster_resources().get("GPU", 0) else 0
        num_cpus = 1 if num_gpus else self._request.threads
        return self._ray.remote(ShardWorker).options(num_gpus=num_gpus, num_cpus=num_cpus).remote(self._request)

    def _assign_shard(self, actor: Any) -> None:
        """Give an actor the next shard, if one is left."""
        if self._left:
            name = self._left.popleft()
            self._running[actor.label.remote(name, self._listed[name])] = (actor, name)

    def _requeue_shard(self, name: str, error: Exception) -> None:
        self._tries[name] += 1
        if self._tries[name] == MAX_TRIES:
            rank, world = list(self._listed).index(name), len(self._listed)
            first_shards = "" if self._request.num_shards is None else f" --shards {world}"
            raise RuntimeError(
                f"{name}: {MAX_TRIES} workers died while labeling this shard, the last with "
                f"{str(error).splitlines()[0]}; label it alone to see why "
                f"(--rank {rank} --world {world}{first_shards})"
            ) from error
        self._left.appendleft(name)
