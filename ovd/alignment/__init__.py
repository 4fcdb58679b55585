"""Alignment of a backbone's dense feature with what CLIP says of a crop, by self-distillation without labels.

Reading order: images.py (what is looked at), proposals.py and boxes.py (where), data.py (in which batches), losses.py
and distillation.py (what is learned), train.py (the loop). The job is ovd/jobs/align_backbone.py.
"""
