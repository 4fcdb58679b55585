"""Readers of annotations, one per format: each returns an `AnnotationTable` (table.py).

supported.py has the formats that training and evaluation read; `ovd import-boxes` converts the others to one of them.
"""
