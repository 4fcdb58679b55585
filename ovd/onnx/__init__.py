"""Detection with a model that `ovd export` wrote; it needs onnxruntime, NumPy and Pillow, but not torch.

from ovd.onnx import Predictor

predictor = Predictor.load("model.onnx")
found = predictor("photo.jpg", ["umbrella", "coffee cup"])
"""

from ovd.onnx.predictor import Predictor
from ovd.onnx.session import Detections

__all__ = ["Detections", "Predictor"]
