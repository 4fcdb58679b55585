"""CLIP models through open_clip, including the toolkit's own tiny one."""
