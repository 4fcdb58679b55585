"""The commands of `ovd`, one per file: its options, and what it prints; arguments.py has what several share."""
