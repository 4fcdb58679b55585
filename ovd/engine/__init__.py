"""Training: the loop (train.py), the gradients of a step (step.py) and the texts that it scores (step_texts.py)."""
