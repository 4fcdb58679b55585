"""The frozen text tower (encoder.py) and the text bank (bank.py), which holds variants of each class's text."""
