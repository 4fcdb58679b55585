"""The alternatives that configs, command lines and code name by a word, each list once."""

from typing import Literal

Activation = Literal["gelu", "quick_gelu"]
"""Of a CLIP model's MLPs."""
AssignmentRule = Literal["fcos", "atss", "task_aligned"]
"""How points are matched to true boxes (model/assign.py)."""
ClassSplit = Literal["base", "all"]
"""Which classes of a data set are trained on."""
DataFormatName = Literal["lvis", "coco", "coco_zero_shot", "objects365", "voc", "yolo"]
"""Formats of annotations (data/formats.py has one record for each)."""
Engine = Literal["hotcoco", "official"]
"""What computes the metrics: hotcoco, or the protocol's own package (lvis, pycocotools), which is slower."""
Frequency = Literal["r", "c", "f"]
"""LVIS's rare, common and frequent classes."""
Head = Literal["fcos", "task_aligned"]
"""Two towers of convolutions, or TOOD's head, whose tasks share them."""
InitState = Literal["averaged", "training"]
"""Which weights of a trained detector a new run starts from."""
Keep = Literal["top1", "top1_per_text", "one_to_one", "all"]
"""Which of an image's pseudo-boxes are kept (selftrain/filter.py)."""
LearningRateDecay = Literal["cosine", "step", "constant"]
NegativeRule = Literal["sampled", "strict", "all"]
"""Which classes are negatives of an image (model/federated.py)."""
PairUse = Literal["boxes", "image_labels"]
"""What is learned from an image-text pair."""
Place = Literal["pyramid", "head"]
"""Where the learned path joins the dense feature."""
Precision = Literal["auto", "bf16", "float32"]
QuerySource = Literal["caption", "ngrams", "nouns", "classes"]
"""Where the queries of an image-text pair come from (selftrain/queries.py)."""
Templates = Literal["none", "short", "full"]
"""Which prompts a class name is put into (text/prompts.py)."""
