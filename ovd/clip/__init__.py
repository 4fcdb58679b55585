"""CLIP models through open_clip, the toolkit's own tiny one included."""
