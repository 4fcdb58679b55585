"""Self-training: a teacher labels image-text pairs (pseudo_label.py), which are then trained on (labelled_pairs.py)."""
