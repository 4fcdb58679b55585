"""Data sets: annotations, images, image-text pairs, and batches of them.

annotations.py reads a data set into the flat arrays of index.py, and report.py counts its faults. formats/ reads
annotation files, images/ reads pixels, pairs/ reads and writes tar shards, loading/ makes batches, export/ writes
boxes for other tools, and world/ draws the embedded world.
"""
