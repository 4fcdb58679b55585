"""From an index of images to batches: loader.py, and on its way augmentation, grouping by shape and padding."""
