"""Alignment of a backbone's dense feature with CLIP's embeddings of crops, by self-distillation without labels.

Reading order: images.py (the images), proposals.py and boxes.py (their boxes), data.py (the batches), losses.py and
distillation.py (the losses), train.py (the loop). The job is ovd/jobs/align_backbone.py.
"""
