"""Shape annotations of numpy arrays, which jaxtyping checks while tests run.

Outside tests nothing is checked, and jaxtyping is not imported: its import takes 0.1 s, and detection with an exported
model needs only onnxruntime, numpy and Pillow (ovd/onnx/).
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # tests import it before anything of ovd
    from jaxtyping import Bool, Float, Float32, Float64, Int, Int64, UInt8, UInt16
else:

    class _Unchecked:
        """Annotation that evaluates to the type of the array, without its shape."""

        def __class_getitem__(cls, item: tuple[type, str]) -> Any:
            return item[0]

    Bool = Float = Float32 = Float64 = Int = Int64 = UInt8 = UInt16 = _Unchecked

__all__ = ["Bool", "Float", "Float32", "Float64", "Int", "Int64", "UInt8", "UInt16"]
