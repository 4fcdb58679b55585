"""Images as RGB pixels: of a file (read.py), in memory (pixels.py), of a video (video.py)."""
