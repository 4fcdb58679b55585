"""Label image-text pairs on a Ray cluster: one actor per GPU, which is given one shard after another.

A shard's files depend on the shard and the settings alone, so they are those of the plain job (`pseudo_label_run`), to
the byte. A shard whose actor or node died is given to another actor; what it had left is written again. All nodes see
the run, the shards and the output under the same paths.
"""

import os
from collections import deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ovd.build.trained import load_detector
from ovd.choices import Templates
from ovd.config import LabelOptions
from ovd.data.pairs.tar import PairShards, list_shards
from ovd.data.report import DataReport
from ovd.experts.group import ExpertGroup
from ovd.extras import optional
from ovd.jobs.pseudo_label import build_labeller
from ovd.selftrain.pseudo_label import LabelCounts, stop_if_too_many, total_counts

MOST_TRIES = 3
"""Actors that a shard may lose before the job stops: then the shard itself may be what kills them."""


@dataclass(frozen=True)
class LabelRequest:
    """What every actor needs to know."""

    run: Path
    pairs: Path
    output: Path
    options: LabelOptions
    templates: Templates | None = None
    teacher_hf: str | None = None
    size: int | None = None
    experts: ExpertGroup | None = None
    threads: int = 2
    """CPU threads of an actor."""
    num_shards: int | None = None
    """Number of the folder's shards to label, from the first; None for all."""
    skip_unreadable: bool = False
    """Whether the job goes on past images that cannot be read, however many."""


class ShardWorker:
    """An actor's content: the teacher, loaded once."""

    def __init__(self, request: LabelRequest):
        torch.set_num_threads(request.threads)
        self._request = request
        device = "cuda" if torch.cuda.is_available() else None
        trained = load_detector(request.run, device, experts=request.experts)
        self._labeller = build_labeller(
            trained,
            request.options,
            templates=request.templates,
            teacher_hf=request.teacher_hf,
            size=request.size,
        )

    def label(self, shard: int, num_shards: int) -> tuple[LabelCounts, DataReport]:
        """Label one shard; the job, not the shard, decides how many images may be unreadable.

        Args:
            shard: its position among the folder's first `num_shards`.
        """
        report = DataReport(stops=False)
        request = self._request
        counts = self._labeller.label(
            request.pairs, request.output, rank=shard, world=num_shards, num_shards=num_shards, report=report
        )
        return counts, report


def label_on_ray(request: LabelRequest, *, address: str | None, workers: int | None = None) -> LabelCounts:
    """Label all shards on a cluster; shards that are done already stay as they are.

    Args:
        address: of the cluster, "auto" for the one that this machine belongs to; None starts one on this machine.
        workers: number of actors; by default one per GPU, or without GPUs one per `threads` CPU cores.

    Raises:
        ValueError: the package ray is missing, or as `label_shards`.
        RuntimeError: a shard lost its actor three times.
    """
    ray = optional("ray", "ray")
    names = list(islice(list_shards(request.pairs), request.num_shards))
    num_pairs = len(PairShards(request.pairs, only=names))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        job = _Job(ray, request, names, num_pairs)
        return job.run(job.num_workers(workers))
    finally:
        ray.shutdown()


class _Job:
    """The shards that are left, and which actor has which."""

    def __init__(self, ray: Any, request: LabelRequest, names: list[str], num_pairs: int):
        self._ray = ray
        self._request = request
        self._names = names
        self._num_pairs = num_pairs
        self._report = DataReport(stops=not request.skip_unreadable)
        self._left = deque(range(len(names)))
        self._tries = [0] * len(names)
        self._running: dict[Any, tuple[Any, int]] = {}
        """Actor and shard of each result that is awaited."""

    def num_workers(self, wanted: int | None) -> int:
        """The number of actors, at most one per shard."""
        resources = self._ray.cluster_resources()
        fitting = int(resources.get("GPU", 0)) or max(1, int(resources.get("CPU", 1)) // self._request.threads)
        return min(wanted or fitting, len(self._names))

    def run(self, num_workers: int) -> LabelCounts:
        """Label all shards."""
        for _ in range(num_workers):
            self._give(self._new_actor())
        counts: list[LabelCounts] = []
        with tqdm(total=self._num_pairs, desc=f"pairs on {num_workers} workers", unit=" images") as bar:
            while self._running:
                (ready,), _ = self._ray.wait(list(self._running), num_returns=1)
                actor, shard = self._running.pop(ready)
                try:
                    of_shard, report = self._ray.get(ready)
                except self._ray.exceptions.RayActorError as error:
                    if getattr(error, "actor_init_failed", False):
                        raise RuntimeError(f"a worker could not start: {str(error).splitlines()[-1]}") from error
                    self._lose(shard, error)
                    self._give(self._new_actor())
                    continue
                except self._ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                counts.append(of_shard)
                bar.update(of_shard.pairs)
                self._report.add(report)
                stop_if_too_many(self._report, self._num_pairs, self._request.pairs)
                self._give(actor)
        return total_counts(counts)

    def _new_actor(self) -> Any:
        num_gpus = 1 if self._ray.cluster_resources().get("GPU", 0) else 0
        num_cpus = 1 if num_gpus else self._request.threads
        return self._ray.remote(ShardWorker).options(num_gpus=num_gpus, num_cpus=num_cpus).remote(self._request)

    def _give(self, actor: Any) -> None:
        """The next shard that is left, if any, to an actor."""
        if self._left:
            shard = self._left.popleft()
            self._running[actor.label.remote(shard, len(self._names))] = (actor, shard)

    def _lose(self, shard: int, error: Exception) -> None:
        self._tries[shard] += 1
        if self._tries[shard] == MOST_TRIES:
            raise RuntimeError(
                f"{self._names[shard]}: {MOST_TRIES} workers died while they had this shard, the last of "
                f"{str(error).splitlines()[0]}; label it alone to see why (--rank {shard} --world {len(self._names)})"
            ) from error
        self._left.appendleft(shard)
