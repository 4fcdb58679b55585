"""Atomic checkpoints: a run that is killed at any time leaves a checkpoint that can be loaded.

A checkpoint is a folder `step-000123/`, 123 being the number of optimizer steps done:

    model.safetensors      the module's state_dict
    ema.safetensors        the averaged weights under the same names; absent if the run keeps no average
    optimizer.safetensors  the optimizer's tensors as `<parameter index>.<name>`, the rest as JSON in the header;
                           absent from a checkpoint of weights alone, which cannot be resumed
    attached.safetensors   further tensors of the caller; absent if there are none
    state.json             step, resolved config, and the run's notes, as `extra`
    manifest.json          sha256 of each file above

It is written as `step-000123.tmp/`, flushed to the disk file by file, and renamed. A folder with that ending is
never read, and is removed by the next save. Nothing is pickled.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ovd.engine.notes import Notes
from ovd.engine.optimizer_state import flatten, read_metadata, unflatten
from ovd.engine.train_state import TrainState
from ovd.engine.weights_file import check_fit, load_into, load_weights
from ovd.files import default_permissions, sha256_of
from ovd.warn import warn

CLIP_FOLDER = "clip"
"""Folder of the CLIP model inside the folder of a packaged detector (build/packaged.py)."""
MANIFEST = "manifest.json"
"""File in every checkpoint folder with the hashes of its other files."""
_MODEL = "model.safetensors"
_EMA = "ema.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_ATTACHED = "attached.safetensors"
_STATE = "state.json"
NO_NOTES = Notes()


class SaveError(RuntimeError):
    """A checkpoint could not be written, for example on a full disk; the older ones are untouched."""

    code = "F22"


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint on disk; `restore` loads its tensors."""

    folder: Path
    step: int
    """Number of optimizer steps done."""
    config: dict[str, Any]
    notes: Notes

    @property
    def weights(self) -> Path:
        """Weights file to evaluate: the averaged weights if the run keeps them, else the module's own."""
        ema = self.folder / _EMA
        return ema if ema.is_file() else self.folder / _MODEL

    def weights_sha256(self) -> str:
        """Return the SHA-256 of `weights` from the manifest, which they were checked against."""
        return str(json.loads((self.folder / MANIFEST).read_text())[self.weights.name])

    def fingerprint(self) -> str:
        """Return the hash of the manifest, which identifies the checkpoint by the hashes of its files."""
        return sha256_of(self.folder / MANIFEST)

    def config_with_clip_path(self) -> dict[str, Any]:
        """Return the config; `clip.name` is the present path of the CLIP model if the checkpoint's folder holds it."""
        if not self.notes.has_clip:
            return self.config
        return self.config | {"clip": self.config["clip"] | {"name": str((self.folder / CLIP_FOLDER).absolute())}}

    def attached(self) -> dict[str, Tensor]:
        """Load the attached tensors; empty if there are none."""
        file = self.folder / _ATTACHED
        return load_file(file) if file.is_file() else {}


def save(
    run_dir: Path,
    state: TrainState,
    *,
    config: Mapping[str, Any],
    notes: Notes = NO_NOTES,
    attached: Mapping[str, Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Write the checkpoint of the state's step under `run_dir` and remove all except the newest `keep` up to that step.

    An intact checkpoint of this step is not written again, unless its calibration was pending; a damaged one is
    replaced.

    Args:
        config: the resolved config, JSON-able.
        notes: notes of the run, which a resumed run needs.
        attached: further tensors by name.
        keep: number of checkpoints; while a calibration is pending, one more is kept, so that a kill during the later
            replacement of this checkpoint leaves an older one.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: tied parameters, or a value that is not JSON-able.
        SaveError: writing failed; the temporary folder is removed and older checkpoints are kept.
    """
    if state.step < 0 or keep < 1:
        raise ValueError(f"step {state.step} must be at least 0 and keep {keep} at least 1")
    optimizer_tensors, optimizer_rest = flatten(state.optimizer)
    tensor_files = {
        _MODEL: (_storable(state.module.state_dict()), None),
        _OPTIMIZER: (_storable(optimizer_tensors), {"rest": _to_json(optimizer_rest, "optimizer options")}),
    }
    if state.ema is not None:
        tensor_files[_EMA] = (_storable(state.ema.state_dict()), {"num_updates": str(state.ema.num_updates)})
    if attached:
        tensor_files[_ATTACHED] = (_storable(attached), None)
    return _write(run_dir, state.step, tensor_files, config, notes, keep + notes.is_calibration_pending)


def save_weights(
    run_dir: Path,
    *,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    notes: Notes,
    attached: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write weights alone as a checkpoint of step 0 under `run_dir`, to evaluate or to start other runs from.

    Args:
        tensors: a detector's state_dict.
        config, notes, attached: as in `save`.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError, SaveError: as in `save`.
    """
    tensor_files: dict[str, tuple[dict[str, Tensor], dict[str, str] | None]] = {_MODEL: (_storable(tensors), None)}
    if attached:
        tensor_files[_ATTACHED] = (_storable(attached), None)
    return _write(run_dir, 0, tensor_files, config, notes, keep=1)


def _write(
    run_dir: Path,
    step: int,
    tensor_files: Mapping[str, tuple[dict[str, Tensor], dict[str, str] | None]],
    config: Mapping[str, Any],
    notes: Notes,
    keep: int,
) -> Path:
    state = _to_json({"step": step, "config": config, "extra": notes.to_json()}, "config or notes")
    folder = run_dir / f"step-{step:06d}"
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        for stale in run_dir.glob("step-*.tmp"):
            _delete(stale)
        if folder.exists() and _damage(folder) is None and not _lacks_calibration(folder, notes):
            return folder
        temporary.mkdir()
        for name, (tensors, metadata) in tensor_files.items():
            with default_permissions(temporary / name):
                save_file(tensors, temporary / name, metadata=metadata)
        (temporary / _STATE).write_text(state)
        manifest = {name: sha256_of(temporary / name) for name in (*tensor_files, _STATE)}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for name in (*manifest, MANIFEST):
            _flush_to_disk(temporary / name)
        _flush_to_disk(temporary)
        if folder.exists():
            _remove(folder)
        temporary.rename(folder)
        _flush_to_disk(run_dir)
        for old in [other for other in _folders(run_dir) if _step(other) <= step][:-keep]:
            _remove(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = _folders(run_dir) if run_dir.is_dir() else []
        older = f"the newest checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise SaveError(f"the checkpoint of step {step} in {run_dir} cannot be saved ({error}); {older}") from error
    return folder


def refuse_checkpoint_folder(folder: Path) -> None:
    """Check that the folder of a new run is not itself a checkpoint, which would be read in place of the run's own.

    Raises:
        ValueError: it is the folder of a checkpoint, or of a detector that was saved to share.
    """
    if (folder / MANIFEST).exists():
        raise ValueError(f"{folder} is the folder of a checkpoint or a saved detector; give another folder for the run")


def latest(run_dir: Path, *, strict: bool = False, check_all_files: bool = True) -> Checkpoint | None:
    """Return the newest intact checkpoint of a run; None if the run has no checkpoint.

    Damaged checkpoints are skipped; a line on stderr names them and the one used.

    Args:
        strict: do not fall back to an older checkpoint.
        check_all_files: whether every file has to be intact, as a resumed run needs. Otherwise the hashes of the
            optimizer's state, which is twice as large as the weights, and of weights that are not evaluated are not
            checked.

    Raises:
        ValueError: checkpoints exist but all are damaged, or, if `strict`, the newest one is.
        PermissionError: a file may not be read by this user.
    """
    damaged: list[str] = []
    for folder in reversed(_folders(run_dir)):
        damage = _damage(folder, check_all_files=check_all_files)
        if damage is None:
            if damaged:
                warn(f"damaged checkpoint {'; '.join(damaged)}; using {folder} instead")
            return _read_state(folder)
        if not folder.exists():  # a running training has replaced it by a newer one
            return latest(run_dir, strict=strict, check_all_files=check_all_files)
        damaged.append(f"{folder}: {damage}")
        if strict:
            break
    if damaged:
        raise ValueError(f"damaged checkpoint {'; '.join(damaged)}; move it away to continue without it")
    return None


def read(folder: Path, *, check_all_files: bool = True) -> Checkpoint:
    """Check one checkpoint folder against its manifest and read its state.

    Args:
        check_all_files: as for `latest`.

    Raises:
        ValueError: the checkpoint is damaged; names the file.
    """
    damage = _damage(folder, check_all_files=check_all_files)
    if damage is not None:
        raise ValueError(f"damaged checkpoint {folder}: {damage}")
    return _read_state(folder)


def restore(found: Checkpoint, state: TrainState) -> None:
    """Load a checkpoint's weights, average and optimizer into a state, bit for bit; `state.step` is not changed.

    The module must already be on its device and in its memory format, and the optimizer built over its parameters by
    the same calls as when saved (fused AdamW: each state tensor is a scalar or shaped like its parameter).

    Raises:
        ValueError: a tensor does not fit, named by file and key, or the checkpoint has no optimizer state, or has no
            weight average while the state has one.
    """
    if not (found.folder / _OPTIMIZER).is_file():
        raise ValueError(
            f"{found.folder} has only weights and cannot be resumed; start a new run from it with init_from and "
            "init_state=averaged"
        )
    if state.ema is not None:
        path = found.folder / _EMA
        if not path.is_file():
            raise ValueError(f"{found.folder} has no weight average (EMA); it can only be loaded without one")
        tensors = load_weights(path)
        check_fit(state.module, tensors, source=path)
        state.ema.load_state_dict(tensors, int(read_metadata(path)["num_updates"]))
    load_into(state.module, found.folder / _MODEL)
    unflatten(state.optimizer, found.folder / _OPTIMIZER)


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    first_name: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() and first_name.setdefault(tensor.data_ptr(), name) != name:
            raise ValueError(
                f"{first_name[tensor.data_ptr()]} and {name} are the same tensor under two names; checkpoints store "
                "each tensor once: register it in one module and pass it to the other as an argument"
            )
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read_state(folder: Path) -> Checkpoint:
    state = json.loads((folder / _STATE).read_text())
    return Checkpoint(folder, state["step"], state["config"], Notes.from_json(state["extra"]))


def _lacks_calibration(folder: Path, notes: Notes) -> bool:
    """Whether the calibration of an intact checkpoint is pending, and no longer is in these notes."""
    return _read_state(folder).notes.is_calibration_pending and not notes.is_calibration_pending


def _to_json(value: object, what: str) -> str:
    try:
        return json.dumps(value, indent=1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be stored in a checkpoint: {error}") from error


def _damage(folder: Path, *, check_all_files: bool = True) -> str | None:
    """Describe the damage of a checkpoint, or of the files that are evaluated; return None if it is intact."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        needed = {_MODEL, _STATE}
        if not isinstance(manifest, dict) or not needed <= manifest.keys() <= needed | {_OPTIMIZER, _EMA, _ATTACHED}:
            return f"{MANIFEST} does not list the files of a checkpoint"
        unread = set[str]() if check_all_files else {_OPTIMIZER}
        if not check_all_files and _EMA in manifest:  # the average is evaluated instead of the module's own weights
            unread.add(_MODEL)
        for name, expected in manifest.items():
            if name not in unread and sha256_of(folder / name) != expected:
                return f"{name} does not match its sha256 in {MANIFEST}"
    except PermissionError:
        raise
    except OSError as error:
        return str(error)
    except ValueError as error:
        return f"{MANIFEST} is not JSON: {error}"
    return None


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folders(run_dir: Path) -> list[Path]:
    return sorted((path for path in run_dir.glob("step-*") if step_of(path) is not None), key=_step)


def step_of(folder: Path) -> int | None:
    """Return the number of optimizer steps in the name of a checkpoint folder; None for any other folder."""
    found = re.fullmatch(r"step-(\d+)", folder.name)
    return None if found is None else int(found[1])


def _step(folder: Path) -> int:
    step = step_of(folder)
    assert step is not None
    return step


def _remove(folder: Path) -> None:
    # Renamed first, so that a kill in between leaves a stale temporary folder, not a damaged checkpoint.
    _delete(folder.rename(folder.with_name(folder.name + ".old.tmp")))


def _delete(folder: Path) -> None:
    """Delete a folder, or a link to one, whose content stays; only warn if it cannot be deleted.

    On network disks, the files of a checkpoint that another process reads remain.
    """
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    except OSError as error:
        warn(f"{folder} cannot be deleted ({error}); the next save tries it again")
