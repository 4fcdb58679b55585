"""The ablation: a table of rows (named configs) times seeds, its records, statistics, tables and pictures.

Every seed is a world of its own, with scenes and rare classes drawn anew, and it seeds the training alike: rows are
compared seed by seed. Reading order: row.py (one run), records.py (what is left of it, and the file of them),
statistics.py (means and paired differences), tables.py (Markdown), plots.py.
"""
