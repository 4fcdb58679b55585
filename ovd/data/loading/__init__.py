"""Batches from a source of images: their order (order.py), reading and transforms (dataset.py), loaders (loader.py)."""
