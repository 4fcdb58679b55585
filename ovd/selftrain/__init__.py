"""Self-training: a teacher labels image-text pairs (pseudo_label.py) that a student trains on (labeled_pairs.py)."""
