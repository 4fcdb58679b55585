"""Export the detector of a run to ONNX; an earlier export is replaced only once all new files are complete."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ovd.build.trained import load_detector
from ovd.experts.folder import DESCRIPTION, read_expert
from ovd.export.detector import export_detector
from ovd.export.smaller import calibration_images, quantize, to_half
from ovd.files import make_parent_folder
from ovd.onnx.text import text_files


@dataclass(frozen=True)
class ExportedFiles:
    """Files that an export wrote and removed."""

    written: tuple[Path, ...]
    removed: tuple[Path, ...]
    """Text files of an earlier export to the same name, which would otherwise be used with this model."""


def export_run(
    run: Path, model: Path, *, to_fp16: bool, int8_images: Path | None, with_text: bool, plain: bool
) -> ExportedFiles:
    """Export a trained detector, and its text tower beside it.

    Args:
        run: run folder or checkpoint folder.
        model: file to write, whose name ends in `.onnx`.
        to_fp16: whether to convert weights and features to 16 bits.
        int8_images: folder of images on which the ranges of features are measured; with it, convolutions and linear
            layers are quantized to 8 bits.
        with_text, plain: as for `export_detector`.

    Raises:
        ValueError: as raised by `load_detector`, `export_detector` and `quantize`; or `run` is the folder of an expert,
            `int8_images` has no images, or the folder of the model cannot be made or written to.
        ImageError: none of these images can be read.
    """
    if (run / DESCRIPTION).is_file():
        base = read_expert(run).description.base
        raise ValueError(f"{run} is the folder of an expert, and experts cannot be exported; export {base}")
    calibration = [] if int8_images is None else calibration_images(int8_images)
    trained = load_detector(run, "cpu", warns=False)  # export_detector raises where loading would warn
    make_parent_folder(model)
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        draft = Path(folder) / model.name
        files = export_detector(trained, draft, with_text=with_text, plain=plain)
        if to_fp16:
            to_half(draft)
        if int8_images is not None:
            quantize(draft, calibration, dim=trained.clip.dim)
        removed = () if with_text else tuple(path for path in text_files(model) if path.exists())
        for path in removed:
            path.unlink()
        written = tuple(path.replace(model.with_name(path.name)) for path in files)
    return ExportedFiles(written, removed)
