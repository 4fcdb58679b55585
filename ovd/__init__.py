"""Open-vocabulary object detection: training and use of detectors that take class names as input."""
