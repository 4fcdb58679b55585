"""Shapes of numpy arrays in signatures, which jaxtyping checks while tests run.

In use nothing is checked. jaxtyping is then not even imported: it takes a tenth of a second, and detection with an
exported model needs onnxruntime, numpy and Pillow alone (ovd/onnx/).
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # tests import it before anything of ovd
    from jaxtyping import Bool, Float, Float32, Float64, Int, Int64, UInt8, UInt16
else:

    class _Unchecked:
        """Stands for the array's type alone."""

        def __class_getitem__(cls, item: tuple[type, str]) -> Any:
            return item[0]

    Bool = Float = Float32 = Float64 = Int = Int64 = UInt8 = UInt16 = _Unchecked

__all__ = ["Bool", "Float", "Float32", "Float64", "Int", "Int64", "UInt8", "UInt16"]
