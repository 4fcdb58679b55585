"""COCO's zero-shot split: training on 48 base classes, evaluation on these and 17 novel classes, 65 in all.

The split is that of Bansal et al. 2018 (arXiv:1804.04340). The other 15 classes of COCO are left out of both.
"""

import numpy as np

from ovd.data.index import AnnotationIndex
from ovd.data.vocabulary import check_no_leak, keep_classes
from ovd.join_first import join_first

# fmt: off
BASE = frozenset({
    "person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird", "horse", "sheep", "bear",
    "zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee", "skis", "kite", "surfboard", "bottle", "fork",
    "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair", "bed",
    "toilet", "tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator", "book", "clock",
    "vase", "toothbrush",
})
NOVEL = frozenset({
    "airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup", "knife",
    "cake", "couch", "keyboard", "sink", "scissors",
})
# fmt: on
GROUPS = {"base": BASE, "novel": NOVEL}


def split_coco_base(index: AnnotationIndex) -> AnnotationIndex:
    """Keep the annotations of the 48 base classes, and the images with at least one of them.

    In the other images, novel objects would be background.

    Raises:
        ValueError: a class of the split is not in the file.
        VocabularyLeak: a novel class shares a name with a base class.
    """
    base = keep_classes(index, _rows(index, BASE))
    check_no_leak(base.categories, [category for category in index.categories if category.name in NOVEL])
    return _with_objects(base)


def split_coco_evaluation(index: AnnotationIndex) -> AnnotationIndex:
    """Keep the 65 base and novel classes, and the images that are evaluated: those with an object of these classes.

    Raises:
        ValueError: a class of the split is not in the file.
    """
    both = keep_classes(index, _rows(index, BASE | NOVEL))
    if both.truth is None:
        return _with_objects(both)
    is_of_classes = np.isin(both.truth.category_ids, [category.id for category in both.categories])
    return both.take(np.flatnonzero(np.isin(both.image_ids, both.truth.image_ids[is_of_classes])))


def _with_objects(index: AnnotationIndex) -> AnnotationIndex:
    return index.take(np.flatnonzero(np.diff(index.boxes.offsets)))


def _rows(index: AnnotationIndex, names: frozenset[str]) -> np.ndarray:
    found = {category.name: row for row, category in enumerate(index.categories)}
    missing = sorted(names - found.keys())
    if missing:
        raise ValueError(f"{index.path} is not a COCO file with all 80 classes; missing: {join_first(missing)}")
    return np.array(sorted(found[name] for name in names), dtype=np.int64)
