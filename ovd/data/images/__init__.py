"""Images as RGB pixels: from a file (read.py), from memory (pixels.py), from a video (video.py)."""
