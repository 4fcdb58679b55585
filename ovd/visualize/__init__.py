"""Drawing of boxes and labels on pictures, and the colors of all pictures; start with boxes.py."""
