"""Build objects from a config: detector.py, data.py, text.py. No package below reads the config of a whole training."""
