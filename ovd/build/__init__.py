"""From a config to objects: detector.py, data.py, text.py. Nothing below reads the config of a whole training."""
