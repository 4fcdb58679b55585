"""Training: the loop (train.py), what a step does to the gradients (step.py), which texts it scores (step_texts.py)."""
