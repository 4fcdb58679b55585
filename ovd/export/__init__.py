"""Export of trained detectors as ONNX files, for `ovd.onnx` and other runtimes."""
