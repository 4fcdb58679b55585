"""Labeling on a Ray cluster gives the bytes of the plain job, even if a worker is killed in between."""

import os
import signal
import tarfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_images import encode
from run_files import bytes_of

from ovd.build.detector import build_detector
from ovd.build.trained import load_detector
from ovd.clip.load import load_clip
from ovd.config.labeling import LabelOptions
from ovd.config.training import TrainConfig
from ovd.config_files import parse_config
from ovd.data.pairs.manifest import ManifestEntry
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataError, DataReport
from ovd.engine import checkpoint
from ovd.engine.notes import Notes
from ovd.jobs.label_pairs import LabelRequest, pseudo_label_run
from ovd.jobs.ray_label import RayRequest, ShardWorker, _RayJob, label_on_ray
from ovd.selftrain.ledger import LabelCounts, total_counts
from ovd.selftrain.pseudo_label import shards_of_worker
from ovd.text.encoder import text_tower_fingerprint

OPTIONS = LabelOptions(queries="nouns", batch_size=4)
NOTHING = LabelCounts(2, 0, 0, 0, 0, 0, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    values = {
        "output": "none",
        "detector": {"channels": 32, "num_convs": 1},
        "data": {"size": 64},
        "train": {"steps": 1, "precision": "float32"},
    }
    config = parse_config(values, TrainConfig, "test")
    torch.manual_seed(0)
    clip = load_clip("tiny")
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save_weights(
        folder,
        tensors=build_detector(config, clip).state_dict(),
        config=config.model_dump(mode="json"),
        notes=Notes(text_tower=text_tower_fingerprint(clip), classes=("anchor",)),
    )
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Folder of eight shards, one of which has a broken image."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)

    def image(number: int) -> bytes:
        content = encode(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8), "JPEG")
        return content if number != 17 else content[:90]

    write_pair_shards(
        folder, (Pair(f"{n:05d}", image(n), f"an anchor and {n} gears", {}) for n in range(48)), pairs_per_shard=6
    )
    return folder


def workers() -> list[int]:
    """Return the process ids of Ray's actors on this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::ShardWorker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(run, pairs, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    warnings.simplefilter("ignore")  # Ray's own warnings
    # Workers start in another folder, but have to import ovd from where this process does.
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    torch.set_num_threads(1)
    expected = pseudo_label_run(load_detector(run), LabelRequest(pairs, tmp_path / "plain", OPTIONS))
    killed: list[int] = []

    def kill_one() -> None:
        while not list((tmp_path / "ray").glob("*.json")):
            time.sleep(0.02)
        killed.append(workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    request = RayRequest(run, LabelRequest(pairs, tmp_path / "ray", OPTIONS), threads=1)
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    counts = label_on_ray(request, address=None, workers=2)
    killer.join()
    assert killed
    assert counts == expected
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "plain")
    assert label_on_ray(request, address=None, workers=1) == expected  # everything is done already


def test_a_worker_labels_a_shard_as_the_plain_job_does_without_listing_the_folder_anew(
    run, pairs, tmp_path, monkeypatch
):
    listed = shards_of_worker(pairs, num_shards=3)
    expected = pseudo_label_run(load_detector(run), LabelRequest(pairs, tmp_path / "plain", OPTIONS), listed=listed)
    request = RayRequest(run, LabelRequest(pairs, tmp_path / "ray", OPTIONS), threads=torch.get_num_threads())
    worker = ShardWorker(request)
    monkeypatch.setattr("ovd.selftrain.pseudo_label.list_shards", None)
    counts, reports = zip(*(worker.label(name, entry) for name, entry in listed.items()), strict=True)
    assert total_counts(list(counts)) == expected
    assert [report.num_used() for report in reports] == [6, 6, 5]
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "plain")


class FakeErrors:
    class RayActorError(Exception):
        pass

    class RayTaskError(Exception):
        def as_instanceof_cause(self) -> Exception:
            return ValueError("from the worker")


class FakeActor:
    def __init__(self, ray: "FakeRay", number: int):
        self.label = self
        self._ray, self._number = ray, number

    def remote(self, name: str, entry: ManifestEntry) -> tuple[int, str]:
        assert entry == entry_of(name)
        self._ray.asked.append((self._number, name))
        return self._number, name


class FakeRay:
    """A stand-in for the few functions of Ray that the job calls; `answer` returns the result of a shard."""

    exceptions = FakeErrors

    def __init__(self, answer: Callable[[int, str], tuple[LabelCounts, DataReport]], **resources: float):
        self._answer, self._resources = answer, resources
        self.asked: list[tuple[int, str]] = []
        self.started = 0
        self.options_of_actors: list[dict] = []

    def init(self, **_: object) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return self._resources

    def remote(self, _worker: type) -> "FakeRay":
        return self

    def options(self, **options: object) -> "FakeStart":
        self.options_of_actors.append(options)
        return FakeStart(self)

    def wait(self, results: list, num_returns: int) -> tuple[list, list]:
        return results[:num_returns], results[num_returns:]

    def get(self, result: tuple[int, str]) -> tuple[LabelCounts, DataReport]:
        return self._answer(*result)


class FakeStart:
    def __init__(self, ray: FakeRay):
        self._ray = ray

    def remote(self, _request: RayRequest) -> FakeActor:
        self._ray.started += 1
        return FakeActor(self._ray, self._ray.started)


def used(count: int = 2) -> DataReport:
    report = DataReport(stops=False)
    report.count_used(count)
    return report


def names(num_shards: int) -> list[str]:
    return [f"{number}.tar" for number in range(num_shards)]


def entry_of(name: str) -> ManifestEntry:
    return ManifestEntry(2, f"sha256 of {name}", 1024)


def job(ray: FakeRay, num_shards: int = 5, threads: int = 2, first_shards: int | None = None) -> _RayJob:
    labeling = LabelRequest(Path("p"), Path("o"), OPTIONS)
    request = RayRequest(Path("r"), labeling, threads=threads, num_shards=first_shards)
    return _RayJob(ray, request, {name: entry_of(name) for name in names(num_shards)}, 2 * num_shards)


def test_every_shard_is_given_once_and_counted():
    ray = FakeRay(lambda actor, name: (NOTHING, used()), CPU=4.0)
    of_job = job(ray)
    assert of_job.num_workers(None) == 2
    assert of_job.run(2).pairs == 10
    assert sorted(name for _, name in ray.asked) == names(5)
    assert ray.options_of_actors == [{"num_gpus": 0, "num_cpus": 2}] * 2


def test_members_that_are_not_used_are_told(tmp_path, monkeypatch, capsys):
    scene = encode(np.zeros((8, 8, 3), np.uint8), "JPEG")
    write_pair_shards(tmp_path, [Pair(str(number), scene, "a gear", {}) for number in range(2)], pairs_per_shard=2)
    (tmp_path / "manifest.json").unlink()
    with tarfile.open(next(tmp_path.glob("*.tar")), "a") as shard:
        shard.addfile(tarfile.TarInfo("failed.txt"))
        shard.addfile(tarfile.TarInfo("0.pickle"))
    ray = FakeRay(lambda actor, name: (NOTHING, used()), CPU=2.0)
    monkeypatch.setattr("ovd.jobs.ray_label.optional", lambda *_: ray)
    monkeypatch.setattr("test_ray_label.entry_of", lambda name: None)
    label_on_ray(RayRequest(Path("r"), LabelRequest(tmp_path, tmp_path / "o", OPTIONS)), address=None)
    told = "1 member of the shards not used, such as 0.pickle; 1 sample without an image (failed downloads)"
    assert f"{tmp_path}: {told}\n" in capsys.readouterr().out


def test_one_worker_per_gpu_and_never_more_than_shards():
    ray = FakeRay(lambda actor, name: (NOTHING, used()), CPU=64.0, GPU=8.0)
    assert job(ray).num_workers(None) == 5
    assert job(ray, num_shards=20).num_workers(None) == 8
    assert job(ray, num_shards=20).num_workers(3) == 3
    job(ray).run(1)
    assert ray.options_of_actors == [{"num_gpus": 1, "num_cpus": 1}]


def test_the_shard_of_a_dead_worker_goes_to_another():
    def answer(actor: int, name: str) -> tuple[LabelCounts, DataReport]:
        if actor == 1 and name == "2.tar":
            raise FakeErrors.RayActorError("killed")
        return NOTHING, used()

    ray = FakeRay(answer, CPU=2.0)
    assert job(ray).run(1).pairs == 10
    assert ray.started == 2
    assert [name for _, name in ray.asked] == ["0.tar", "1.tar", "2.tar", "2.tar", "3.tar", "4.tar"]


def test_a_shard_that_kills_every_worker_stops_the_job():
    def answer(actor: int, name: str) -> tuple[LabelCounts, DataReport]:
        if name == "3.tar":
            raise FakeErrors.RayActorError("killed")
        return NOTHING, used()

    with pytest.raises(RuntimeError, match=r"3\.tar: 3 workers died .*\(--rank 3 --world 5\)"):
        job(FakeRay(answer, CPU=2.0)).run(1)
    with pytest.raises(RuntimeError, match=r"3\.tar: 3 workers died .*\(--rank 3 --world 5 --shards 5\)"):
        job(FakeRay(answer, CPU=2.0), first_shards=5).run(1)


def test_a_worker_that_cannot_start_says_why():
    def answer(actor: int, name: str) -> tuple[LabelCounts, DataReport]:
        error = FakeErrors.RayActorError("The actor died\n  File x\nValueError: no such run")
        error.actor_init_failed = True  # type: ignore[attr-defined]
        raise error

    with pytest.raises(RuntimeError, match="a worker could not start: ValueError: no such run"):
        job(FakeRay(answer, CPU=2.0)).run(1)


def test_an_error_of_a_worker_is_that_of_the_job():
    def answer(actor: int, name: str) -> tuple[LabelCounts, DataReport]:
        raise FakeErrors.RayTaskError

    with pytest.raises(ValueError, match="from the worker"):
        job(FakeRay(answer, CPU=2.0)).run(1)


def test_too_many_unreadable_images_stop_the_job_by_their_number_in_all_shards():
    def answer(actor: int, name: str) -> tuple[LabelCounts, DataReport]:
        report = used(0)
        for number in range(2):
            report.count_skipped("F9", f"{name}:{number}: broken")
        return NOTHING, report

    with pytest.raises(DataError, match=r"p: 6 of 10 skipped.* repair or remove these samples"):
        job(FakeRay(answer, CPU=2.0)).run(1)
