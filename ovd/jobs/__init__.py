"""The jobs behind the commands, one per file: train, evaluate, fine-tune, label, detect. Begin with train.py."""
