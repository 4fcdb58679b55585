"""The rows of docs/benchmarks.md: the command of each on a device, and the marks that its ratios should reach."""

from dataclasses import dataclass

ANNOTATIONS = "../shared/data/lvis_val_100.json"
"""Annotation file with sizes of LVIS's images."""
QUICKSTART = "runs/quickstart/stages.json"
"""File that a finished `make quickstart` leaves."""


@dataclass(frozen=True)
class Row:
    """A command on one device, and its limits."""

    name: str
    """Name of the results, and of the script unless `script` is given."""
    device: str
    limits: dict[str, float]
    """The highest ratio, ours to the peer's, at which each mark is reached."""
    arguments: tuple[str, ...] = ()
    script: str | None = None
    has_device: bool = True
    """Whether the script has an option for the device."""
    needs: str | None = None
    """A file without which the row is not run."""

    def command(self) -> list[str]:
        """Return the script and its arguments."""
        device = ("--device", self.device) if self.has_device else ()
        return [f"{self.script or self.name}.py", *self.arguments, *device]


_OF_VOCABULARY = {
    "time, 1,203 names": 1.15,
    "time, 13,000 names": 1.8,
    "time, 20,000 names": 2.1,
    "time, 1,203 names, prefilter": 1.05,
    "time, 13,000 names, prefilter": 1.15,
    "time, 20,000 names, prefilter": 1.2,
}
_CONVNEXT = ("--config", "configs/lvis_base_convnext_b.yaml")

ROWS = (
    Row(
        "loss_memory", "cpu",
        {
            "time of products, 1,203 classes, float32": 1.3,
            "time of products, 1,203 classes, bfloat16": 1.5,
            "memory of torchvision, 1,203 classes, float32": 0.1,
            "memory of torchvision, 1,203 classes, bfloat16": 0.1,
        },
        ("--classes", "1203"),
    ),
    Row(
        "train_step", "cpu",
        {
            "time of tuned, 91 classes": 0.85,
            "time of tuned, 1,203 classes": 0.65,
            "memory of tuned, 91 classes": 0.6,
            "memory of tuned, 1,203 classes": 0.6,
        },
    ),
    Row("step_memory", "cpu", {"13,000 classes": 1.3}),
    Row("detect", "cpu", {"time, 91 classes": 0.8, "time, 1,203 classes": 0.8}),
    Row("mfu_lvis_base_rn50", "cpu", {"time at the peak of convolutions": 1 / 0.45}, script="mfu"),
    Row("vocabulary", "cpu", _OF_VOCABULARY),
    Row("postprocess", "cpu", {"time of product": 1.2}),
    Row("text_bank", "cpu", {"time of 1 ms": 1.0, "memory of 64 MiB": 1.0}, has_device=False),
    Row(
        "loader", "cpu", {"time of decoding and a resize": 1.18, "time of Pillow and torchvision": 0.4},
        has_device=False,
    ),
    Row(
        "padding", "cpu", {"pixels of the images' own, 8 shapes": 1.04}, ("--annotations", ANNOTATIONS),
        has_device=False, needs=ANNOTATIONS,
    ),
    Row(
        "lvis_eval", "cpu",
        {"time of hotcoco alone, from files": 2.0, "time of hotcoco alone, from arrays": 1.05},
        has_device=False,
    ),
    Row("pseudo_label", "cpu", {"time of the forward pass": 1.05, "time of image by image": 0.33}),
    Row("optimizer", "cpu", {"time of the floor": 1.2}),
    Row("startup", "cpu", {"time of pycocotools": 0.1}, ("--images", "40000"), has_device=False),
    Row("quickstart", "cpu", {"time of 0:12:00": 1.0}, has_device=False, needs=QUICKSTART),
    Row(
        "loss_memory", "cuda",
        {
            "time of products, 1,203 classes, bfloat16": 1.4,
            "time of torchvision, 100 classes, bfloat16": 1.0,
            "memory of torchvision, 100 classes, bfloat16": 1 / 3,
        },
        ("--points", "213488", "--classes", "100", "1203"),
    ),
    Row(
        "train_step", "cuda",
        {
            "time of tuned, 91 classes": 1.0,
            "time of tuned, 1,203 classes": 0.8,
            "memory of tuned, 91 classes": 0.9,
            "memory of tuned, 1,203 classes": 0.7,
        },
    ),
    Row("detect", "cuda", {"time, 91 classes": 1.0, "time, 1,203 classes": 1.0}),
    Row(
        "mfu_lvis_base_rn50", "cuda",
        {"time at the peak of products": 1 / 0.2, "time in which it is busy": 1 / 0.95}, script="mfu",
    ),
    Row(
        "mfu_lvis_base_convnext_b", "cuda",
        {"time at the peak of products": 1 / 0.3, "time in which it is busy": 1 / 0.95}, _CONVNEXT, script="mfu",
    ),
    Row("step_memory", "cuda", {"13,000 classes": 1.3}),
    Row("vocabulary", "cuda", _OF_VOCABULARY),
    Row("postprocess", "cuda", {"time of product": 2.0}, ("--images", "16")),
    Row("pseudo_label", "cuda", {"time of the forward pass": 1.1}),
    Row("optimizer", "cuda", {"time of the floor": 1.2}),
    Row("quickstart", "cuda", {"time of 0:01:00": 1.0}, has_device=False, needs=QUICKSTART),
)  # fmt: skip
