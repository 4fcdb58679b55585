"""An exported detector in onnxruntime: from padded images and text rows to detections."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovd.extras import optional
from ovd.shapes import Float32, Int64, UInt8

METADATA = "ovd"
"""Key in the model's metadata that holds its `Usage` as JSON."""


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first; `len` is their number."""

    boxes: Float32[np.ndarray, "K 4"]
    """Boxes as xyxy, in pixels."""
    scores: Float32[np.ndarray, " K"]
    classes: Int64[np.ndarray, " K"]
    """Positions of the classes among the text rows, or in the list of names."""

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Usage:
    """Settings that are needed to run an exported detector."""

    size: int
    """Longest side in pixels that images are resized to."""
    size_divisor: int
    """Divisor that image sides must be padded to multiples of."""
    threshold: float | None
    """Score threshold for reporting boxes; None if the detector was not calibrated."""
    dim: int
    """D, the dimension of the text rows."""
    weights_sha256: str | None = None
    """SHA-256 of the weights file that the detector was exported from; None in files of earlier versions."""


def open_session(path: Path, *, threads: int = 0, providers: Sequence[Any] | None = None) -> Any:
    """Open an ONNX model with onnxruntime.

    Args:
        threads: threads per operation; 0 for as many as there are cores.
        providers: onnxruntime's execution providers, in order of preference for each operation; by default the CPU.

    Raises:
        ValueError: onnxruntime or a provider is missing, or the file is missing or cannot be read.
    """
    onnxruntime = optional("onnxruntime", "onnx")
    if not path.is_file():
        raise ValueError(f"{path}: file is missing")
    providers, available = list(providers or ["CPUExecutionProvider"]), onnxruntime.get_available_providers()
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    if missing := [name for name in names if name not in available]:  # onnxruntime would fall back to the CPU
        raise ValueError(f"the installed onnxruntime has no {', '.join(missing)}; it has {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to others
    options.log_severity_level = 3  # errors only; its warnings are about the graph's constants
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base
        raise ValueError(f"{path}: onnxruntime cannot load it: {error}") from error


class DetectionSession:
    """An exported detector in onnxruntime, for padded images."""

    def __init__(self, path: Path, *, threads: int = 0, providers: Sequence[Any] | None = None):
        """
        Args:
            path: ONNX file that `ovd export` wrote.
            threads, providers: as for `open_session`.

        Raises:
            ValueError: as for `open_session`; or `ovd export` did not write the file.
        """
        self._session = open_session(path, threads=threads, providers=providers)
        content = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        if content is None:
            raise ValueError(f"{path} was not written by ovd export: its metadata has no {METADATA!r}")
        try:
            self.usage = Usage(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} was not written by this version of ovd export: {error}; export it again"
            ) from None

    def __call__(
        self, images: UInt8[np.ndarray, "B H W 3"], sizes: Int64[np.ndarray, "B 2"], text: Float32[np.ndarray, "C D"]
    ) -> tuple[Detections, ...]:
        """Detect in a batch of images; boxes are in pixels of the padded images.

        Args:
            images: RGB, padded with zeros at the right and bottom to multiples of `usage.size_divisor`.
            sizes: heights and widths before padding.
            text: unit rows, at least one.
        """
        inputs = {"images": images, "sizes": sizes, "text": text}
        boxes, scores, classes, counts = self._session.run(["boxes", "scores", "classes", "counts"], inputs)
        classes = classes.astype(np.int64)  # onnxruntime's dtype is C's long long, which NumPy names otherwise
        return tuple(
            Detections(boxes[row, :count], scores[row, :count], classes[row, :count])
            for row, count in enumerate(counts)
        )
