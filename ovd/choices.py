"""Names of the alternatives in configs, command lines and code, each list in one place."""

from typing import Literal

Activation = Literal["gelu", "quick_gelu"]
"""Activation of a CLIP model's MLPs."""
AssignmentRule = Literal["fcos", "atss", "task_aligned"]
"""Assignment of points to true boxes (model/assign.py)."""
ClassSplit = Literal["base", "all"]
"""Classes of a data set to train on: the base classes, or all."""
DataFormatName = Literal["lvis", "coco", "coco_zero_shot", "objects365", "voc", "yolo"]
"""Annotation formats (data/formats/supported.py has one record for each)."""
ImportFormatName = Literal["coco", "voc", "yolo", "labelme", "cvat", "csv", "via", "open_images"]
"""Formats that `ovd import-boxes` reads (data/import_boxes.py)."""
ExportFormatName = Literal["coco", "yolo", "voc", "label_studio"]
"""Formats that `ovd label` writes (data/export/boxes.py)."""
DetectionForm = Literal["pictures", "coco", "lines"]
"""Output formats of `ovd detect` (jobs/detect_output.py)."""
Domain = Literal["shapes", "strokes", "composites"]
"""Domains of the foreign data sets (data/world/foreign.py)."""
ExpertPart = Literal["path", "names"]
"""Trained part of an expert: a pyramid, a head and shortcuts of its own, or only a text row for each of its names."""
Engine = Literal["hotcoco", "official"]
"""Package that computes the metrics: hotcoco, or the protocol's own (lvis, pycocotools), which is slower."""
Frequency = Literal["r", "c", "f"]
"""LVIS's class frequencies: rare, common, frequent."""
Head = Literal["fcos", "task_aligned"]
"""Detection head: separate towers of convolutions for classes and boxes, or TOOD's head with one shared stack."""
InitState = Literal["averaged", "training"]
"""State of a trained detector that a new run starts from."""
Keep = Literal["top1", "top1_per_text", "one_to_one", "all"]
"""Pseudo-boxes kept per image (selftrain/filter.py)."""
LearningRateDecay = Literal["cosine", "step", "constant"]
"""Learning-rate schedule after the warm-up (engine/optim.py)."""
NegativeRule = Literal["sampled", "strict", "all"]
"""Classes that are negatives of an image (model/federated.py)."""
PairUse = Literal["boxes", "image_labels"]
"""Supervision from an image-text pair: its pseudo-boxes, or its texts as labels of the image."""
Place = Literal["pyramid", "head"]
"""Place at which the learned path is added to the dense feature (model/gates.py)."""
Precision = Literal["auto", "bf16", "float32"]
"""Numerical precision; `auto` is bf16 where the hardware is fast at it (precision.py)."""
QuerySource = Literal["caption", "ngrams", "nouns", "classes"]
"""Source of an image-text pair's queries (selftrain/queries.py)."""
SamePlace = Literal["base_stays", "surer", "both"]
"""Rule for a box of the base detector and a box of an expert at the same place (experts/merge.py)."""
Templates = Literal["none", "short", "full"]
"""Prompt templates for a class name (text/prompts.py)."""
WeightFormat = Literal["float16", "float32"]
"""Number format of weights on disk."""
