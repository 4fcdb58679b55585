"""Shapes of numpy arrays in signatures, for code that also runs where jaxtyping is not installed.

Detection with an exported model needs onnxruntime, numpy and Pillow alone (ovd/onnx/).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8, UInt16
else:
    try:
        from jaxtyping import Float32, Int64, UInt8, UInt16
    except ImportError:

        class _Unchecked:
            """Stands for the array's type alone."""

            def __class_getitem__(cls, item: tuple[type, str]) -> Any:
                return item[0]

        Float32 = Int64 = UInt8 = UInt16 = _Unchecked

__all__ = ["Float32", "Int64", "UInt8", "UInt16"]
