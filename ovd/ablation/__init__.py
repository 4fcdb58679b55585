"""The ablation: a table of rows (named configs) times seeds, its records, statistics, tables and pictures.

Every seed is a world of its own, with scenes and rare classes drawn anew, and it seeds the training alike: rows are
compared seed by seed. Reading order: records.py (one finished run, and the file of them), statistics.py (means and
paired differences), tables.py (Markdown), plots.py.
"""
