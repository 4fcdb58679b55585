"""Readers of annotations, one per format: each yields an `AnnotationTable` (table.py).

known.py has the formats that training and evaluation take; `ovd import-boxes` reads the others into one of them.
"""
