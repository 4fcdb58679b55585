"""Find the newest checkpoint of a run, and make and lock its run folder."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from ovd.config.alignment import AlignConfig
from ovd.config.training import TrainConfig
from ovd.distributed import all_gather, barrier, device_of_rank, is_main, raise_on_all_ranks, world_size
from ovd.engine.checkpoint import MANIFEST, Checkpoint, latest, refuse_checkpoint_folder
from ovd.engine.early_stop import is_early_stop_over
from ovd.files import atomic_write, folder_lock
from ovd.precision import describe_machine

CONFIG_FILE = "config.yaml"


def is_finished(checkpoint: Checkpoint, config: TrainConfig) -> bool:
    """Return whether a checkpoint is the last one of its run, after its last step and its calibration."""
    is_last_step = checkpoint.step == config.train.steps or is_early_stop_over(checkpoint.notes)
    return is_last_step and not checkpoint.notes.is_calibration_pending


def latest_on_all_ranks(run: Path, *, strict: bool = False) -> Checkpoint | None:
    """Return the newest intact checkpoint of a run, the same on every rank; None if there is none.

    Raises:
        ValueError: as raised by `latest`, or the ranks see different checkpoints.
    """
    with raise_on_all_ranks():
        checkpoint = latest(run, strict=strict)
    seen = all_gather(None if checkpoint is None else (checkpoint.folder.name, checkpoint.fingerprint()))
    if len(set(seen)) > 1:
        names = ", ".join("none" if one is None else one[0] for one in seen)
        raise ValueError(
            f"{run}: the ranks see different checkpoints ({names}); the folder must be on a disk that all ranks share"
        )
    return checkpoint


@contextmanager
def open_run_folder(config: TrainConfig | AlignConfig, checkpoint: Checkpoint | None) -> Iterator[None]:
    """Make the run folder with its config, lock it for this run, and print the device that the run uses.

    Args:
        checkpoint: newest checkpoint in the folder, looked up before the folder was locked.

    Raises:
        ValueError: as `check_run_folder`; another run is writing there or has written since; or a rank does not see the
            folder.
    """
    barrier()  # every rank must have checked whether there is a run
    content, file = config.model_dump(mode="json"), config.output / CONFIG_FILE
    with ExitStack() as held:
        with raise_on_all_ranks():
            if is_main():
                check_run_folder(config.output)
                config.output.mkdir(parents=True, exist_ok=True)
                held.enter_context(folder_lock(config.output))
                _check_newest(config.output, checkpoint)
                with atomic_write(file) as stream:
                    stream.write(yaml.safe_dump(content, sort_keys=False))
                ranks = f", one of {world_size()} ranks" if world_size() > 1 else ""
                print(f"{config.output}: {describe_machine(device_of_rank(config.train.device))}{ranks}")
        barrier()
        with raise_on_all_ranks():
            if not file.exists():
                raise ValueError(
                    f"{config.output}, which rank 0 created, does not exist on this rank; it must be on a shared disk"
                )
        yield


def _check_newest(run: Path, checkpoint: Checkpoint | None) -> None:
    """Check that `checkpoint` is still the newest checkpoint, or that there is still none.

    Raises:
        ValueError: another run has written one since.
    """
    newest = max((path.parent.name for path in run.glob(f"step-*/{MANIFEST}")), default=None)
    if newest == (None if checkpoint is None else checkpoint.folder.name):
        return
    now = latest(run)  # the newer one may be damaged
    if (None if now is None else now.folder) != (None if checkpoint is None else checkpoint.folder):
        raise ValueError(f"{run}: another run wrote {newest} while this run started; start this run again")


def check_run_folder(run: Path) -> None:
    """Check that a run folder is no checkpoint, and that its config, which a training replaces, is that of a run.

    Raises:
        ValueError: it is the folder of a checkpoint, or its config was written by hand.
    """
    refuse_checkpoint_folder(run)
    file = run / CONFIG_FILE
    if file.exists() and not _is_of_a_run(file):
        raise ValueError(f"{file} was not written by a run and would be replaced; move it away, or give another output")


def _is_of_a_run(file: Path) -> bool:
    """Return whether a config was written by a run of any version: then dumping it again gives the same text."""
    try:
        text = file.read_text(encoding="utf-8")
        written = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(written, dict) and yaml.safe_dump(written, sort_keys=False) == text
