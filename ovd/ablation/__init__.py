"""The ablation: a table of rows (named configs) times seeds, its records, statistics, tables and pictures.

Every seed is a separate world with its own scenes and rare classes, and also the seed of the training, so rows are
compared seed by seed. Reading order: row.py (one run), records.py (its record), record_file.py (the file of records),
statistics.py (means and paired differences), tables.py (Markdown), plots.py.
"""
