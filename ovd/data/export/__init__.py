"""Export of boxes to the files of annotation tools and trainers, the inverse of the readers (boxes.py)."""
