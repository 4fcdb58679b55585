"""Writer of a run's checkpoints and of the reports on its data."""

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from ovd.data.report import DataReport
from ovd.distributed import barrier, is_main, rank
from ovd.engine import checkpoint
from ovd.engine.checkpoint import SaveError
from ovd.engine.notes import Notes
from ovd.engine.train_state import TrainState
from ovd.warn import warn

MAX_FAILED_SAVES = 2


class CheckpointWriter:
    """Writer of a run's checkpoints, which tolerates two failed saves, for example on a full disk."""

    def __init__(self, run_dir: Path, *, keep: int, config: Mapping[str, Any], notes: Notes):
        """
        Args:
            run_dir: the run folder.
            keep: number of checkpoints kept on the disk, the newest ones.
            config: the resolved config, JSON-able.
            notes: notes of the run, stored in every checkpoint; the attribute may be replaced later.
        """
        self.run_dir = run_dir
        self._report_file = run_dir / (f"data_report.rank{rank()}.json" if rank() else "data_report.json")
        self.config = config
        self._keep = keep
        self.notes = notes
        self.attached: dict[str, Tensor] = {}
        """Further tensors by name, stored in every checkpoint."""
        self._num_failed = 0

    def save(
        self, state: TrainState, report: DataReport, *, must_succeed: bool, warning: Callable[[str], None]
    ) -> None:
        """Write a checkpoint on the main process, and every rank's report; all ranks wait for the checkpoint.

        Args:
            report: counts of the samples that this rank loaded since the run was last started.
            must_succeed: whether to raise every error; otherwise the first two of the run are tolerated.
            warning: called with the message of a tolerated error.

        Raises:
            SaveError, OSError: writing failed.
        """
        try:
            if is_main():
                checkpoint.save(
                    self.run_dir,
                    state,
                    config=self.config,
                    notes=self.notes,
                    attached=self.attached,
                    keep=self._keep,
                )
        except (SaveError, OSError) as error:
            self._num_failed += 1
            if must_succeed or self._num_failed > MAX_FAILED_SAVES:
                raise
            warning(str(error))
        self.write_report(report)
        barrier()

    def write_report(self, report: DataReport) -> None:
        """Write the data report, one file per rank; only warn if it cannot be written."""
        try:
            report.write(self._report_file)
        except OSError as error:
            warn(f"{self._report_file} cannot be written ({error})")

    def rotate_report(self) -> None:
        """Rename the data report of an earlier start, so that it is not overwritten."""
        if self._report_file.exists():
            earlier = (self._report_file.with_suffix(f".{number}.json") for number in count(1))
            self._report_file.replace(next(path for path in earlier if not path.exists()))
