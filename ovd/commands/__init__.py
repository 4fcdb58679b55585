"""The commands of `ovd`, one per file: options and printed output; arguments.py has the options that several share."""
