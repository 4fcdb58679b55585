"""Open-vocabulary detection: train and use detectors that take the names of what they find as input."""
