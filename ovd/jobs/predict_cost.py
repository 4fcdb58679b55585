"""Predict the memory and time of training a config on given hardware, from counted operations."""

from dataclasses import dataclass

from ovd.config.training import TrainConfig
from ovd.cost import MEASURED_UTILIZATION, Cost, count_cost
from ovd.format_count import format_count

H100_TFLOPS = 989.0
"""Peak of an H100 SXM in TFLOP/s, in bf16; `MEASURED_UTILIZATION` is a share of it."""
DEFAULT_GPUS = 8


@dataclass(frozen=True)
class Hardware:
    """Hardware of a training: GPUs, or one CPU."""

    num_gpus: int
    """Number of GPUs; 0 for a CPU."""
    peak_tflops: float | None
    """Peak of each GPU, or of the CPU, in TFLOP/s; None for a CPU whose peak is unknown."""
    utilization: float | None
    """Share of the peak that training reaches, above 0 and at most 1; None if it is unknown."""

    @classmethod
    def from_config(
        cls, config: TrainConfig, *, gpus: int | None, peak_tflops: float | None, utilization: float | None
    ) -> "Hardware":
        """Return the hardware of a config's `train.device`: one CPU for `cpu`, GPUs for all others.

        The default is 8 H100 GPUs with the utilization that was measured on one.

        Raises:
            ValueError: a number of GPUs is given for a CPU, or only one of its peak and its utilization.
        """
        if config.train.device != "cpu":
            return cls(gpus or DEFAULT_GPUS, peak_tflops or H100_TFLOPS, utilization or MEASURED_UTILIZATION)
        if gpus is not None:
            raise ValueError("--gpus cannot be used with train.device=cpu")
        if (peak_tflops is None) != (utilization is None):
            raise ValueError("to predict the time on a CPU, give both --peak-tflops and --utilization")
        return cls(0, peak_tflops, utilization)


@dataclass(frozen=True)
class PredictedCost:
    """Predicted cost of a training: memory per process, and time without evaluations."""

    cost: Cost
    height: int
    width: int
    """Width of an image in pixels; `height` likewise."""
    steps: int
    images_per_step: int
    images_at_a_time: int
    """Number of images that a process computes at once; there is one process per GPU."""
    hardware: Hardware

    @property
    def memory_bytes(self) -> int:
        return self.cost.training_bytes(self.images_at_a_time)

    @property
    def hours(self) -> float | None:
        """Training time in hours; None for a CPU whose peak and utilization are unknown."""
        hardware = self.hardware
        if hardware.peak_tflops is None or hardware.utilization is None:
            return None
        return self.cost.training_hours(
            steps=self.steps,
            images=self.images_per_step,
            peak_tflops=max(1, hardware.num_gpus) * hardware.peak_tflops,
            utilization=hardware.utilization,
        )

    @property
    def summary(self) -> str:
        """Summary in a few lines, for people to read."""
        cost, per_gpu = self.cost, " per GPU" if self.hardware.num_gpus else ""
        parameters, trained = cost.parameters / 1e6, cost.trained_parameters / 1e6
        forward, training = cost.forward_flops / 1e9, cost.training_flops / 1e9
        at_a_time = f"{format_count(self.images_at_a_time, 'image')}{per_gpu} at a time"
        lines = (
            f"parameters          {parameters:,.1f} M, {trained:,.1f} M of them trained",
            f"GFLOP per image     {forward:,.0f} forward, {training:,.0f} in training",
            f"memory, predicted   {self.memory_bytes / 2**30:,.1f} GiB with {at_a_time}",
            f"time, predicted     {self._time()}",
        )
        return "\n".join(lines)

    def _time(self) -> str:
        work = f"{format_count(self.steps, 'step')} of {format_count(self.images_per_step, 'image')}"
        hardware, hours = self.hardware, self.hours
        if hours is None:
            tflop = self.steps * self.images_per_step * self.cost.training_flops / 1e12
            return f"not known: {work} are {tflop:,.3g} TFLOP; give the --peak-tflops and --utilization of the CPU"
        minutes = f"{60 * hours:.1f} min" if 60 * hours >= 1 else "under 1 min"
        time = f"{hours:,.1f} h" if hours >= 1 else minutes
        where = format_count(hardware.num_gpus, "GPU") if hardware.num_gpus else "a CPU"
        return f"{time} for {work} on {where} of {hardware.peak_tflops:g} TFLOP/s at {hardware.utilization:.0%}"


def predict_cost(config: TrainConfig, hardware: Hardware, *, height: int | None = None) -> PredictedCost:
    """Predict the cost of training a config on images that are `data.size` pixels wide.

    Args:
        height: image height in pixels; None for the width, to which batches of several images are padded.

    Raises:
        ValueError: as raised by `count_cost`.
    """
    train, width = config.train, config.data.size
    height = height or width
    return PredictedCost(
        count_cost(config, height, width),
        height,
        width,
        steps=train.steps,
        images_per_step=train.batch_size,
        images_at_a_time=-(-train.batch_size // max(1, hardware.num_gpus) // train.accumulate),
        hardware=hardware,
    )
