"""Boxes of images as files of annotation tools and trainers: the inverse of the readers (boxes.py)."""
