"""Atomic writes of files, their hashes, and the folder of what is kept between runs."""

import fcntl
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

GZIP = b"\x1f\x8b"
"""The first bytes of a file that is compressed by gzip."""

LOCK = ".lock"
"""Name of the file in a folder that its only writer holds."""
LOCK_PATIENCE_S = 8.0
"""How long to wait for a lock: workers of a killed process notice its end within seconds."""


def refuse_existing(path: Path) -> None:
    """Check that nothing of this name exists.

    Raises:
        ValueError: there is a file or a folder of that name.
    """
    if path.exists():
        raise ValueError(f"{path} exists; give another name, or remove it")


def refuse_missing_run(path: Path) -> None:
    """Check that the folder of a run or a checkpoint exists, which commands do before torch is imported to read it.

    Raises:
        ValueError: there is nothing of that name.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; name the folder of a run (`make quickstart` makes runs/quickstart)")


def make_folder_of(output: Path) -> None:
    """Make the folder that a file will be written to.

    Raises:
        ValueError: as `make_folder`.
    """
    make_folder(output.parent, f"{output}: its folder")


def make_folder(folder: Path, words: str, advice: str = "") -> None:
    """Make a folder to write into.

    Args:
        words: what an error calls it.
        advice: end of an error.

    Raises:
        ValueError: it cannot be made, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{words} cannot be made ({error.strerror or error}){advice}") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{words} cannot be written to{advice}")


@contextmanager
def atomic_write(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """A file to write that replaces `path` once complete; an error leaves `path` as it was.

    Several processes may write at once, on one machine or on several that share a disk: the last one wins.

    Args:
        mode: text in UTF-8 with line ends as they are written, or bytes.
    """
    temporary = path.with_name(f"{path.name}{_temporary_ending(os.getpid())}")
    text = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
    try:
        with temporary.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file, which appears whole or not at all and ends in a line end.

    Args:
        indent: None puts all on one line, for what nobody reads by eye.

    Raises:
        ValueError: a number is not finite, which JSON does not have.
    """
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=indent, allow_nan=False) + "\n")


@contextmanager
def usual_permissions(path: Path) -> Iterator[None]:
    """Give a file that the block writes the permissions of new files; safetensors' own are for their owner alone."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process while the block runs; `.lock` in it names the process.

    Processes that were forked meanwhile hold it too, for seconds after this one was killed. File systems that know no
    locks let everybody in.

    Raises:
        ValueError: another process holds it, and does so for `LOCK_PATIENCE_S`.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as lock:
        if not lock_file(lock):
            lock.seek(0)
            raise ValueError(f"{folder} is being written to by {lock.read().strip()}; wait for its end")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        try:
            yield
        finally:
            unlock_file(lock)


def lock_file(file: IO[Any]) -> bool:
    """Lock an open file, or find that its file system knows no locks.

    Returns:
        False if another process holds it, and does so for `LOCK_PATIENCE_S`.
    """
    end = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        except OSError:
            return True


def unlock_file(file: IO[Any]) -> None:
    """Unlock a file for every process; closing it would leave it locked by those that were forked meanwhile."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files of `atomic_write` that dead processes of this machine left."""
    temporary_name = re.compile(".*" + re.escape(_temporary_ending("PROCESS")).replace("PROCESS", r"(\d+)"))
    for path in folder.glob("*.tmp"):
        found = temporary_name.fullmatch(path.name)
        if found and (int(found[1]) == os.getpid() or not _is_running(int(found[1]))):
            path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """The folder of what is kept between runs and can be made again: `OVD_CACHE`, by default ~/.cache/ovd."""
    return Path(os.environ.get("OVD_CACHE") or Path.home() / ".cache" / "ovd")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(content: object) -> str:
    """A short hash of plain data, the same in whatever order its keys are; it names folders that outlive a process."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _temporary_ending(process: int | str) -> str:
    return f".{platform.node()}.{process}.tmp"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        pass
    return True
