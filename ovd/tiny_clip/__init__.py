"""Pretraining of the tiny CLIP (pretrain.py), whose weights are committed in ovd/assets/tiny_clip/."""
