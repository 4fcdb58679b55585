"""The named alternatives of configs, command lines and code, each list once."""

from typing import Literal

Activation = Literal["gelu", "quick_gelu"]
"""Activation of a CLIP model's MLPs."""
AssignmentRule = Literal["fcos", "atss", "task_aligned"]
"""How points are matched to true boxes (model/assign.py)."""
ClassSplit = Literal["base", "all"]
"""Which classes of a data set are trained on."""
DataFormatName = Literal["lvis", "coco", "coco_zero_shot", "objects365", "voc", "yolo"]
"""Formats of annotations (data/formats/known.py has one record for each)."""
ImportFormatName = Literal["coco", "voc", "yolo", "labelme", "cvat", "csv", "via", "open_images"]
"""What `ovd import-boxes` reads (data/import_boxes.py)."""
ExportFormatName = Literal["coco", "yolo", "voc", "label_studio"]
"""What `ovd label` writes (data/export/boxes.py)."""
DetectionForm = Literal["pictures", "coco", "lines"]
"""What `ovd detect` writes (jobs/detect_output.py)."""
Domain = Literal["shapes", "strokes", "composites"]
"""Foreign data sets (data/world/foreign.py)."""
ExpertPart = Literal["path", "names"]
"""What an expert learns: a pyramid, a head and shortcuts of its own, or only a text row for each of its names."""
Engine = Literal["hotcoco", "official"]
"""Package that computes the metrics: hotcoco, or the protocol's own (lvis, pycocotools), which is slower."""
Frequency = Literal["r", "c", "f"]
"""LVIS's rare, common and frequent classes."""
Head = Literal["fcos", "task_aligned"]
"""Detection head: two towers of convolutions, or TOOD's head, whose tasks share them."""
InitState = Literal["averaged", "training"]
"""State of a trained detector that a new run starts from."""
Keep = Literal["top1", "top1_per_text", "one_to_one", "all"]
"""Pseudo-boxes kept per image (selftrain/filter.py)."""
LearningRateDecay = Literal["cosine", "step", "constant"]
"""Learning-rate schedule after the warm-up (engine/optim.py)."""
NegativeRule = Literal["sampled", "strict", "all"]
"""Classes that are negatives of an image (model/federated.py)."""
PairUse = Literal["boxes", "image_labels"]
"""How an image-text pair is trained on: its pseudo-boxes, or its texts as labels of the image."""
Place = Literal["pyramid", "head"]
"""Place at which the learned path is added to the dense feature (model/gates.py)."""
Precision = Literal["auto", "bf16", "float32"]
"""Numerical precision; `auto` is bf16 where the hardware is fast at it (precision.py)."""
QuerySource = Literal["caption", "ngrams", "nouns", "classes"]
"""Source of an image-text pair's queries (selftrain/queries.py)."""
SamePlace = Literal["base_stays", "surer", "both"]
"""What becomes of boxes of the base detector and of an expert at one place (experts/merge.py)."""
Templates = Literal["none", "short", "full"]
"""Prompt templates for a class name (text/prompts.py)."""
WeightFormat = Literal["float16", "float32"]
"""Number format of weights on disk."""
