"""Data sets: annotations, images, image-text pairs, and batches of them.

annotations.py reads a data set, index.py is what it becomes, report.py counts what was wrong with it. formats/ reads
files of annotations, images/ reads pixels, pairs/ tar shards; loading/ makes batches; world/ is data that anyone can
draw.
"""
