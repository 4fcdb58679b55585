"""The run and the data set of an `ovd eval` call, the name of its results folder, and the options recorded there."""

from dataclasses import dataclass
from pathlib import Path

from ovd.choices import DataFormatName, SamePlace
from ovd.data.formats.options import NO_OPTIONS, FormatOptions
from ovd.data.formats.supported import FORMATS


@dataclass(frozen=True)
class EvaluationSubject:
    """A run, with its experts or its exported file, and the data set to evaluate it on.

    Raises:
        ValueError: an option is missing, or cannot be combined with another.
    """

    run: Path
    annotations: Path | None = None
    """Annotations of the data set; None for the run's validation set."""
    images: Path | None = None
    format: DataFormatName | None = None
    options: FormatOptions = NO_OPTIONS
    experts: tuple[Path, ...] = ()
    same_place: SamePlace | None = None
    nearest: bool = False
    onnx: Path | None = None
    """Exported file of the run, which is evaluated in its place."""
    size: int | None = None
    """Longest side of an image in pixels; None for the size used in training."""

    def __post_init__(self) -> None:
        if self.annotations is None:
            if self.images is not None or self.format is not None or self.options != NO_OPTIONS:
                raise ValueError("--images, --format and the options of a format need --annotations FILE")
        elif self.format is None or (self.images is None and not FORMATS[self.format].finds_images):
            raise ValueError(f"--annotations needs --images FOLDER and --format ({', '.join(FORMATS)})")
        if self.onnx is not None and self.experts:
            raise ValueError("--expert cannot be used with --onnx, since an exported detector has no experts")

    @property
    def folder_name(self) -> str:
        """Name of the results folder, which lists what differs from an evaluation of the run alone."""
        annotations = self.annotations and self.annotations.resolve()
        experts = [path.resolve() for path in self.experts]
        words = [annotations.parent.name, annotations.stem] if annotations else []
        words += [self.onnx.stem] if self.onnx else []
        words += [self.options.split] if self.options.split else []
        words += [path.parent.name if path.name == "expert" else path.name for path in experts]
        words += ["nearest"] if self.nearest else []
        words += [self.same_place] if self.same_place else []
        words += [f"size-{self.size}"] if self.size else []
        return "-".join(["eval", *words])

    def recorded_options(self) -> dict[str, str]:
        """Return the options to record in the results folder, by name; paths are absolute."""
        said = {
            "run": self.run,
            "annotations": self.annotations,
            "images": self.images,
            "format": self.format,
            **vars(self.options),
            "expert": sorted(str(path.resolve()) for path in self.experts),
            "same_place": self.same_place,
            "nearest": self.nearest,
            "onnx": self.onnx,
            "size": self.size,
        }
        return {
            name: str(value.resolve() if isinstance(value, Path) else value) for name, value in said.items() if value
        }
