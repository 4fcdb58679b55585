"""Conversion of an exported detector to half precision, or to 8-bit convolutions and linear layers.

Only the operations inside the detector are converted; scores, selection and suppression stay in float32.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovd.data.images.files import find_images
from ovd.data.images.read import read_images
from ovd.extras import optional
from ovd.files import atomic_write
from ovd.onnx.predictor import pad
from ovd.onnx.resize import resize
from ovd.onnx.session import DetectionSession

DETECTOR_PREFIX = "/detector/"
"""Prefix of the names of the operations inside the detector (`DetectionGraph.detector`)."""
MAX_CALIBRATION_IMAGES = 100
"""Maximum number of images that ranges of features are measured on."""
FLOAT32_LAYERS = ("/head/distances", "/head/quality")
"""Convolutions that output boxes and qualities, which stay in float32."""
INT8_OPERATIONS = ("Conv", "MatMul", "Gemm")


def to_half(path: Path) -> None:
    """Convert an exported detector to float16, in place; inputs and outputs stay as they are.

    Raises:
        ValueError: a package is missing.
    """
    onnx, float16 = _packages()[:2]
    model = onnx.load(path)
    outside = [node.name for node in model.graph.node if not node.name.startswith(DETECTOR_PREFIX)]
    converted = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=outside)
    with atomic_write(path, "wb") as file:
        file.write(converted.SerializeToString())


def calibration_images(folder: Path) -> list[Path]:
    """Choose images for `quantize` to measure the ranges of features on: up to 100 of a folder, evenly spread.

    Raises:
        ValueError: the folder has no image.
    """
    paths = find_images(folder)
    if not paths:
        raise ValueError(f"{folder} has no images, which --int8 needs to measure the ranges of features")
    return [
        paths[row]
        for row in np.linspace(0, len(paths) - 1, min(MAX_CALIBRATION_IMAGES, len(paths))).round().astype(int)
    ]


def quantize(path: Path, images: Sequence[Path], *, dim: int) -> None:
    """Convert convolutions and linear layers of an exported detector to 8 bits, in place.

    Args:
        images: images like those to detect in; the ranges of features are measured on those that can be read.
        dim: D, the dimension of the text rows.

    Raises:
        ValueError: a package is missing.
        ImageError: no image can be read.
    """
    onnx, _, quantization = _packages()
    model = onnx.load(path)
    nodes = [
        node.name
        for node in model.graph.node
        if node.op_type in INT8_OPERATIONS
        and node.name.startswith(DETECTOR_PREFIX)
        and not any(part in node.name for part in FLOAT32_LAYERS)
    ]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared, result = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quantization.shape_inference.quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            result,
            _calibration(path, images, dim, quantization.CalibrationDataReader),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # sums of 8-bit products overflow on CPUs without VNNI
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            nodes_to_quantize=nodes,
            op_types_to_quantize=list(INT8_OPERATIONS),
        )
        model = onnx.load(result)
    onnx.helper.set_model_props(model, metadata)
    with atomic_write(path, "wb") as file:
        file.write(model.SerializeToString())


def _calibration(path: Path, images: Sequence[Path], dim: int, reader: type) -> Any:
    """Return onnxruntime's reader of inputs: one image at a time, and a text row, which no range depends on."""
    usage = DetectionSession(path).usage
    text = np.eye(1, dim, dtype=np.float32)

    def inputs() -> Iterator[dict[str, np.ndarray]]:
        for pixels in read_images(images):
            image = resize(pixels, usage.size)
            sizes = np.array([image.shape[:2]], dtype=np.int64)
            yield {"images": pad(image, usage.size_divisor)[None], "sizes": sizes, "text": text}

    class Reader(reader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.inputs = inputs()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    return Reader()


def _packages() -> tuple[Any, Any, Any]:
    """Import onnx, and onnxruntime's float16 converter and quantization."""
    onnx, float16 = optional("onnx", "onnx"), optional("onnxruntime.transformers.float16", "onnx")
    quantization = optional("onnxruntime.quantization", "onnx")
    optional("onnxruntime.quantization.shape_inference", "onnx")  # defines quantization.shape_inference
    logging.getLogger("onnxruntime").setLevel(logging.ERROR)
    return onnx, float16, quantization
