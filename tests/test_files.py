"""Access rights of the files and folders that runs write."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ovd.experts.folder import find_expert
from ovd.files import default_permissions, folder_lock, refuse_missing_run, short_hash


def test_the_hash_that_names_folders_stays_and_knows_no_order_of_keys() -> None:
    content = {"seed": 1, "sizes": [0.5, None], "style": {"on": True, "of": "scenes"}}
    assert short_hash(content) == "cf3af75078ba"
    assert short_hash(dict(reversed(content.items()))) == short_hash(content)
    assert short_hash(content | {"seed": 2}) != short_hash(content)


def test_tensors_get_the_permissions_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with default_permissions(tmp_path / "a.safetensors"):
            save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def _enter(folder: Path, answers) -> None:
    try:
        with folder_lock(folder):
            answers.put("entered")
    except ValueError as error:
        answers.put(str(error))


def test_a_folder_is_held_by_one_process_and_free_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovd.files.LOCK_TIMEOUT_S", 0)
    processes = multiprocessing.get_context("fork")
    answers = processes.Queue()

    def other_process() -> str:
        process = processes.Process(target=_enter, args=(tmp_path, answers))
        process.start()
        process.join()
        return answers.get()

    with folder_lock(tmp_path):
        assert f"{tmp_path} is in use by process {os.getpid()} on " in other_process()
    assert other_process() == "entered"


def test_a_file_system_without_locks_lets_everybody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with folder_lock(tmp_path), folder_lock(tmp_path):
        pass


def test_a_folder_is_free_after_the_block_though_a_process_that_was_forked_in_it_lives(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    end = processes.Event()
    with folder_lock(tmp_path):
        worker = processes.Process(target=end.wait)
        worker.start()
    try:
        with folder_lock(tmp_path):
            pass
    finally:
        end.set()
        worker.join()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("runs/quickstrat", "runs/quickstrat does not exist; did you mean runs/quickstart?"),
        ("runs/quickstart/step-600", "step-600 does not exist; did you mean runs/quickstart/step-000600?"),
        ("run/quickstart/step-000600", "did you mean runs/quickstart/step-000600?"),
        ("run/other", "run/other does not exist; give the folder of a run"),
        ("runs/config.yamll", "runs/config.yamll does not exist; give the folder of a run"),  # a file is no run
        ("runs/config.yaml/a", "runs/config.yaml/a does not exist; give the folder of a run"),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_mistyped_run_is_told_of_one_with_a_similar_name(given, message, absolute, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart" / "step-000600").mkdir(parents=True)
    (tmp_path / "runs" / "config.yaml").touch()
    with pytest.raises(ValueError, match="does not exist") as caught:
        refuse_missing_run(tmp_path / given if absolute else Path(given))
    assert message in str(caught.value).replace(f"{tmp_path}/", "")


def test_a_mistyped_expert_is_told_of_one_with_a_similar_name(tmp_path):
    (tmp_path / "mine_expert").mkdir()
    with pytest.raises(ValueError, match=r"mine_exprt has no expert.*; did you mean .*/mine_expert\?$"):
        find_expert(tmp_path / "mine_exprt")
    with pytest.raises(ValueError, match=r"nor expert/expert\.json$"):
        find_expert(tmp_path / "mine_expert")
