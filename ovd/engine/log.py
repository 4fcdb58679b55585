"""The log of a run: console lines, `metrics.jsonl`, TensorBoard, `curves.png` and, on request, W&B."""

import resource
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ovd.distributed import is_main, rank
from ovd.engine.curves import draw_training_curves
from ovd.engine.metric_records import METRICS_FILE, read_records, to_line, write_records
from ovd.engine.wandb_log import WandbLog
from ovd.metric import per_cent
from ovd.warn import warn

CONSOLE_INTERVAL = 20
"""Steps between lines in a log file."""
CURVES_INTERVAL = 1000
"""Steps between drawings of the curves."""


def open_log(
    run_dir: Path, total_steps: int, resumed_step: int, wandb: str | None, config: Mapping[str, Any]
) -> "RunLog | NoLog":
    """Open the run's log on the main process, and a log without output on the others.

    Args:
        resumed_step: number of optimizer steps done before; 0 for a new run.
        wandb: Weights & Biases project for the scalars and the run's config; None for no W&B log.
    """
    if is_main():
        more = WandbLog(wandb, run_dir, config, resumed=resumed_step > 0) if wandb is not None else None
        return RunLog(run_dir, total_steps=total_steps, resumed_step=resumed_step, wandb=more)
    return NoLog()


class NoLog:
    """A log with the interface of `RunLog` that shows nothing but warnings, for ranks that are not the main process."""

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def train(self, step: int, losses: Mapping[str, float], *, lr: float, num_images: int) -> None:
        pass

    def has_evaluation(self, step: int) -> bool:
        return True

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def gates(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        warn(f"rank {rank()}: {text}")


class RunLog:
    """The log of one training run; a context manager, since TensorBoard and the curves are finished on exit.

    In a terminal one line is redrawn in place; in a log file there is one line every `CONSOLE_INTERVAL` steps.
    The losses shown are means over the steps since the last permanent line. `metrics.jsonl` gets one JSON object per
    step, evaluation or measurement of the gates:

        {"kind": "train", "step": 12, "time_s": ..., "lr": ..., "images_per_s": ..., "losses": {name: value}}
        {"kind": "evaluation", "step": 500, "time_s": ..., "metrics": {name: value}}
        {"kind": "gates", "step": 50, "time_s": ..., "gates": {name: value}}

    with `time_s` in seconds since the epoch and null for values that are not finite. `step` counts optimizer steps
    done, as in checkpoints. On resume everything after `resumed_step` is removed, and a repeated evaluation replaces
    its earlier line, so that no step occurs twice.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        total_steps: int,
        resumed_step: int = 0,
        wandb: WandbLog | None = None,
    ) -> None:
        """Open the log of a run that has done `resumed_step` of `total_steps` steps.

        Raises:
            ValueError: on resume, `metrics.jsonl` is damaged before its last line.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics_file = run_dir / METRICS_FILE
        self._curves_file = run_dir / "curves.png"
        self._wandb = wandb
        self._total_steps = total_steps
        self._start_step = resumed_step
        self._start_s = self._last_step_s = self._last_line_s = time.monotonic()
        self._unshown: list[tuple[Mapping[str, float], int]] = []

        # A run from step 0 repeats all evaluations, so no record is kept.
        earlier = read_records(self._metrics_file) if resumed_step else []
        kept = [record for record in earlier if record["step"] <= resumed_step]
        self._evaluated = {record["step"] for record in kept if record["kind"] == "evaluation"}
        write_records(self._metrics_file, kept)
        self._metrics = self._metrics_file.open("ab", buffering=0)
        self._unwritten = b""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside TensorBoard and what it imports
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._tensorboard: SummaryWriter | None = SummaryWriter(
                str(run_dir / "tensorboard"), purge_step=resumed_step + 1
            )

    def train(self, step: int, losses: Mapping[str, float], *, lr: float, num_images: int) -> None:
        """Log one optimizer step.

        Args:
            step: optimizer steps done, this one included (1..total).
            losses: the single losses by name, without their sum.
            lr: base learning rate of this step.
            num_images: images in this step, over all ranks.
        """
        now = time.monotonic()
        images_per_s = num_images / max(now - self._last_step_s, 1e-9)
        self._last_step_s = now
        self._append({"kind": "train", "step": step, "lr": lr, "images_per_s": images_per_s, "losses": dict(losses)})
        terms = {f"loss/{name}": value for name, value in losses.items()}
        self._scalars(step, {**terms, "lr": lr, "images_per_s": images_per_s})

        self._unshown.append((losses, num_images))
        whole_line = step % CONSOLE_INTERVAL == 0 or step == self._total_steps
        if whole_line or sys.stdout.isatty():
            self._show(self._line(step, lr, now), stays=whole_line)
        if whole_line:
            self._unshown = []
            self._last_line_s = now
        if step % CURVES_INTERVAL == 0:
            self._draw_curves()

    def has_evaluation(self, step: int) -> bool:
        """Whether an evaluation after `step` optimizer steps was logged."""
        return step in self._evaluated

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log an evaluation after `step` optimizer steps; its metrics are printed in percent."""
        if step in self._evaluated:
            with self._warn_on_disk_error(f"{self._metrics_file} has the evaluation of step {step} twice"):
                records = read_records(self._metrics_file)
                others = [r for r in records if (r["kind"], r["step"]) != ("evaluation", step)]
                write_records(self._metrics_file, others)
                self._metrics.close()
                self._metrics = self._metrics_file.open("ab", buffering=0)
        self._evaluated.add(step)
        self._append({"kind": "evaluation", "step": step, "metrics": dict(metrics)})
        self._scalars(step, {f"evaluation/{name}": value for name, value in metrics.items()})
        now = time.monotonic()  # the time of the evaluation is not counted in the next step's
        self._last_line_s += now - self._last_step_s
        self._last_step_s = now
        values = "  ".join(f"{name} {per_cent(value)}" for name, value in metrics.items())
        self.message(f"step {step}/{self._total_steps}  evaluation  {values}")

    def gates(self, step: int, values: Mapping[str, float]) -> None:
        """Log the `gate_statistics` after `step` optimizer steps; they are not printed."""
        self._append({"kind": "gates", "step": step, "gates": dict(values)})
        self._scalars(step, {f"gates/{name}": value for name, value in values.items()})

    def message(self, text: str) -> None:
        """Print a separate line, without breaking the progress line."""
        self._show(text, stays=True)

    def warning(self, text: str) -> None:
        """Print a warning on standard error, in place of the progress line, which the next step draws again."""
        with suppress(OSError):
            if sys.stdout.isatty():
                print("\r\x1b[K", end="", flush=True)
            warn(text)

    def close(self, *, failed: bool = False) -> None:
        """Draw the curves and finish the files.

        Args:
            failed: whether the run ended with an error.
        """
        with self._warn_on_disk_error(f"the last lines of {self._metrics_file} are lost"):
            self._metrics.close()
        if self._tensorboard is not None:
            with self._warn_on_disk_error("the end of TensorBoard's log is missing"):
                self._tensorboard.close()
        self._draw_curves()
        if self._unshown and sys.stdout.isatty():
            print()  # keeps the progress line of an interrupted run on the screen
        if self._wandb is not None:
            self._wandb.close(failed=failed)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    def _append(self, record: dict[str, Any]) -> None:
        self._unwritten += to_line(record | {"time_s": time.time()}).encode()
        with self._warn_on_disk_error(f"{self._metrics_file} will be written at the next step"):
            while self._unwritten:
                self._unwritten = self._unwritten[self._metrics.write(self._unwritten) :]

    @contextmanager
    def _warn_on_disk_error(self, consequence: str) -> Iterator[None]:
        """Turn disk errors inside the context into warnings, since only a failed checkpoint may end the run."""
        try:
            yield
        except OSError as error:
            self.warning(f"the log cannot be written ({error}); {consequence}")

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._tensorboard is not None:
            try:
                for name, value in values.items():
                    self._tensorboard.add_scalar(name, value, step)
            except OSError as error:  # the writer's thread has ended, so every later call would fail, too
                self._tensorboard = None
                self.warning(f"TensorBoard's log ends at step {step} ({error}); metrics.jsonl is still written")
        if self._wandb is not None:
            self._wandb.scalars(step, values)

    def _line(self, step: int, lr: float, now: float) -> str:
        terms_of_steps = [losses for losses, _ in self._unshown]
        means = {
            name: float(np.mean([losses[name] for losses in terms_of_steps if name in losses]))
            for name in dict.fromkeys(name for losses in terms_of_steps for name in losses)
        }
        terms = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        images_per_s = sum(count for _, count in self._unshown) / max(now - self._last_line_s, 1e-9)
        seconds_per_step = (now - self._start_s) / max(step - self._start_step, 1)
        eta = format_duration(seconds_per_step * (self._total_steps - step))
        return (
            f"step {step}/{self._total_steps}  loss {sum(means.values()):.3f} ({terms})  lr {lr:.2e}  "
            f"{images_per_s:.1f} images/s  ETA {eta}  {peak_memory_gib():.1f} GiB"
        )

    def _show(self, line: str, *, stays: bool) -> None:
        with suppress(OSError):  # a closed terminal or pipe must not end the run
            if sys.stdout.isatty():
                columns = shutil.get_terminal_size().columns
                # A line that wraps is cut, since only its last row would be redrawn.
                print(f"\r\x1b[K{line if stays else line[: columns - 1]}", end="\n" if stays else "", flush=True)
            else:
                print(line, flush=True)

    def _draw_curves(self) -> None:
        with self._warn_on_disk_error(f"{self._curves_file} is not updated"):
            records = read_records(self._metrics_file)
            if records:
                draw_training_curves(records, self._curves_file)


def format_duration(seconds: float) -> str:
    """Format a duration as h:mm:ss, rounded to whole seconds."""
    minutes, whole_seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole_seconds:02d}"


def peak_memory_gib() -> float:
    """Return the peak memory in GiB: allocated on the GPU if CUDA is in use, else resident memory of the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
