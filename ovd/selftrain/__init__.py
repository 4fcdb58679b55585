"""Self-training: a teacher labels image-text pairs (pseudo_label.py) that a student trains on (labelled_pairs.py)."""
