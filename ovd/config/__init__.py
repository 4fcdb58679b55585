"""Every setting with its type and meaning: training.py has the settings of `ovd train`, the others of other jobs.

config_files.py reads them from YAML and from the command line. Values are plain data: no import path, no code and no
environment variable is ever read from a config.
"""
