"""Detection with a model that `ovd export` wrote: onnxruntime, numpy and Pillow, no torch.

from ovd.onnx import Predictor

predictor = Predictor.load("model.onnx")
found = predictor("photo.jpg", ["umbrella", "coffee cup"])
"""

from ovd.onnx.predictor import Predictor
from ovd.onnx.session import Detections

__all__ = ["Detections", "Predictor"]
