"""Every setting, its type and its meaning: training.py has those of `ovd train`, the others those of other jobs.

config_files.py reads them from YAML and from the command line. Values are plain data: no import path, no code and no
environment variable is ever read from a config.
"""
