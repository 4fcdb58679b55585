"""Trained detectors as ONNX files, which `ovd.onnx` and other runtimes detect with."""
