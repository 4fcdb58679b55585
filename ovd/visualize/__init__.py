"""Boxes on pictures, their labels, and the colors of all pictures; boxes.py is where to begin."""
