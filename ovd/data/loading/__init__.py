"""From an index of images to batches: in which order (order.py), read and transformed (dataset.py), by loader.py."""
