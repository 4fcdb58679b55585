"""Atomic writes, locks and hashes of files, and the cache folder."""

import fcntl
import hashlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, Literal

GZIP = b"\x1f\x8b"
"""First bytes of a file compressed by gzip."""

LOCK = ".lock"
"""Name of the lock file in a folder, locked by the process that writes to the folder."""
LOCK_TIMEOUT_S = 8.0
"""Seconds to wait for a lock. Workers of a killed process, which still hold it, notice its end within seconds."""


def refuse_existing(path: Path) -> None:
    """Check that a path does not exist.

    Raises:
        ValueError: there is a file or a folder at this path.
    """
    if path.exists():
        raise ValueError(f"{path} already exists; give another name, or delete it")


def refuse_missing_run(path: Path, key: str | None = None) -> None:
    """Check that the folder of a run or a checkpoint exists.

    Commands call this before they import torch to read the folder.

    Args:
        key: key of a config that the path is from, which the message names.

    Raises:
        ValueError: the path does not exist; the message has an existing path of a similar name.
    """
    if path.exists():
        return
    near = similar_folder(path)
    advice = f"did you mean {near}?" if near else "give the folder of a run (`make quickstart` makes runs/quickstart)"
    given = path if key is None else f"{key}={path}"
    raise ValueError(f"{given} does not exist; {advice}")


def similar_folder(path: Path) -> Path | None:
    """Return a folder whose path is like one that does not exist, but for one similar name; None if there is none."""
    missing = next(part for part in reversed((path, *path.parents)) if not part.exists())
    names = [folder.name for folder in missing.parent.glob("*/")]
    near = [missing.parent / name / path.relative_to(missing) for name in get_close_matches(missing.name, names)]
    return next((folder for folder in near if folder.is_dir()), None)


def make_parent_folder(output: Path) -> None:
    """Create the parent folder of an output file.

    Raises:
        ValueError: the folder cannot be created or written to.
    """
    make_folder(output.parent, f"the folder of {output}")


def make_folder(folder: Path, words: str, advice: str = "") -> None:
    """Create a folder to write into, unless it exists.

    Args:
        words: description of the folder in error messages.
        advice: end of the error messages.

    Raises:
        ValueError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{words} cannot be created ({error.strerror or error}){advice}") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{words} cannot be written to{advice}")


@contextmanager
def atomic_write(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` once it is complete; an error leaves `path` as it was.

    Several processes may write at once, on one machine or on several that share a disk: the last one wins.

    Args:
        mode: "w" for text in UTF-8, whose line ends are written unchanged, or "wb" for bytes.
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
    """Write a JSON file atomically, with a line end at its end.

    Args:
        indent: number of spaces per level; None writes a single line, for files that people do not read.

    Raises:
        ValueError: a number is not finite, which JSON cannot represent.
    """
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=indent, allow_nan=False) + "\n")


@contextmanager
def default_permissions(path: Path) -> Iterator[None]:
    """Give the file written inside this context the usual permissions of new files.

    Without it, only the owner could read a file that safetensors writes.
    """
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for this process while the context is open; the file `.lock` in it names the process.

    Processes forked in the meantime share the lock and may hold it for seconds after this process was killed. On file
    systems without locks, nothing is locked.

    Raises:
        ValueError: another process still holds the lock after `LOCK_TIMEOUT_S`.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as lock:
        if not lock_file(lock):
            lock.seek(0)
            raise ValueError(f"{folder} is in use by {lock.read().strip()}; wait until it ends")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        try:
            yield
        finally:
            unlock_file(lock)


def lock_file(file: IO[Any], *, waits: bool = False) -> bool:
    """Lock an open file.

    Args:
        waits: whether to wait until the file is free, however long that takes.

    Returns:
        True if the file is locked or its file system has no locks; False if another process still holds the lock after
        `LOCK_TIMEOUT_S`.
    """
    end = math.inf if waits else time.monotonic() + LOCK_TIMEOUT_S
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
    """Unlock a file for every process; if it were only closed, processes forked in the meantime would hold the lock."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


def remove_stale_temporaries(folder: Path) -> None:
    """Remove temporary files of `atomic_write` left by dead processes of this machine."""
    temporary_name = re.compile(".*" + re.escape(_temporary_ending("PROCESS")).replace("PROCESS", r"(\d+)"))
    for path in folder.glob("*.tmp"):
        found = temporary_name.fullmatch(path.name)
        if found and (int(found[1]) == os.getpid() or not _is_running(int(found[1]))):
            path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the folder for files that are kept between runs and can be recreated: `OVD_CACHE`, or ~/.cache/ovd.

    A user without a home folder, such as a number in a container, gets a path at which nothing can be written.
    """
    try:
        return Path(os.environ.get("OVD_CACHE") or Path.home() / ".cache" / "ovd")
    except RuntimeError:
        return Path(os.devnull) / "ovd"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(content: object) -> str:
    """Return a short hash of plain data for folder names, independent of the order of keys and of the process."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _temporary_ending(process: int | str) -> str:
    return f".{platform.node()}.{process}.tmp"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process runs, as another user
        pass
    return True
