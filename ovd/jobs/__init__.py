"""What the commands do, one job per file: train, evaluate, fine-tune, label, detect. Begin with train.py."""
