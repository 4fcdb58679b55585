"""Base and rare classes: the base set keeps no trace of a rare class, and a shared name is a leak."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ovd.choices import Frequency
from ovd.data.annotations import load_annotations
from ovd.data.category import Category
from ovd.data.report import DataReport
from ovd.data.vocabulary import VocabularyLeak, base_classes, check_no_leak, keep_classes, split_lvis_base


def category(name: str, *synonyms: str, frequency: Frequency | None = "f") -> Category:
    return Category(id=1, name=name, synonyms=synonyms, frequency=frequency, image_count=1)


@pytest.fixture
def index(tmp_path):
    """Index with classes f r c f (rows 0 to 3); the second image has only a rare object, the third a crowd of the rare
    class."""
    content = {
        "categories": [
            {"id": row + 1, "name": name, "synonyms": [name], "frequency": frequency, "image_count": 1}
            for row, (name, frequency) in enumerate([("cat", "f"), ("yak", "r"), ("dog", "c"), ("hat", "f")])
        ],
        "images": [
            {
                "id": row,
                "height": 100,
                "width": 50,
                "file_name": f"{row}.jpg",
                "neg_category_ids": [4, 2],
                "not_exhaustive_category_ids": [2, 1],
            }
            for row in range(3)
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 3, "bbox": [0, 0, 3, 3]},
            {"id": 2, "image_id": 0, "category_id": 2, "bbox": [0, 0, 2, 2]},
            {"id": 3, "image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1]},
            {"id": 4, "image_id": 1, "category_id": 2, "bbox": [0, 0, 2, 2]},
            {"id": 5, "image_id": 2, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"id": 6, "image_id": 2, "category_id": 4, "bbox": [0, 0, 4, 4]},
        ],
    }
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(content))
    return load_annotations(path, tmp_path, format="lvis", report=DataReport())


def test_base_keeps_all_images_and_removes_every_trace_of_rare_classes(index):
    base = split_lvis_base(index)
    assert base_classes(index).tolist() == [0, 2, 3]
    assert [c.name for c in base.categories] == ["cat", "dog", "hat"]
    assert base.image_ids.tolist() == [0, 1, 2]
    records = [base.record(row) for row in range(3)]
    assert [record.labels.classes.tolist() for record in records] == [[1, 0], [], [2]]
    assert [record.labels.boxes[:, 2].tolist() for record in records] == [[3, 1], [], [4]]
    assert [record.labels.negative_classes.tolist() for record in records] == [[2]] * 3
    assert [record.labels.not_exhaustive_classes.tolist() for record in records] == [[0]] * 3
    assert records[2].labels.crowd_boxes.tolist() == [[0, 0, 9, 9]]


def test_keep_classes_follows_the_order_of_rows_and_takes_none_and_all(index):
    turned = keep_classes(index, np.array([3, 0]))
    assert [c.name for c in turned.categories] == ["hat", "cat"]
    assert [turned.record(row).labels.classes.tolist() for row in range(3)] == [[1], [], [0]]
    nothing = keep_classes(index, np.array([], dtype=np.int64))
    assert (len(nothing), nothing.categories, len(nothing.boxes.values)) == (3, (), 0)
    everything = keep_classes(index, np.arange(4))
    for row in range(3):
        before, after = index.record(row), everything.record(row)
        assert before.labels.classes.tolist() == after.labels.classes.tolist()
        assert before.labels.boxes.tolist() == after.labels.boxes.tolist()
    for rows in ([0, 0], [4], [-1]):
        with pytest.raises(ValueError, match="distinct"):
            keep_classes(index, np.array(rows))


def test_base_needs_frequencies(index):
    without = replace(index, categories=tuple(replace(c, frequency=None) for c in index.categories))
    with pytest.raises(ValueError, match="4 classes without a frequency"):
        base_classes(without)
    rare = replace(index, categories=tuple(replace(category, frequency="r") for category in index.categories))
    with pytest.raises(ValueError, match=r"all 4 classes are rare.*data\.classes=all"):
        base_classes(rare)


@pytest.mark.parametrize(
    ("training", "novel"),
    [
        (category("ice_cream"), category("Ice Cream")),
        (category("bow_(weapon)"), category("bow weapon")),
        (category("cat", "kitty"), category("kitty")),
        (category("kitty"), category("cat", "KITTY")),
        (category("cat", "kitty"), category("puss", " kitty ")),
        (category("straße"), category("STRASSE")),
        (category("jack-o'-lantern"), category("jack-o\u2019-lantern")),
        (category("café"), category("cafe\u0301")),
        (category("salt &amp; pepper"), category("salt & pepper")),
        (category("\uff34\uff36"), category("TV")),
    ],
)
def test_a_shared_name_or_synonym_is_a_leak(training, novel):
    with pytest.raises(VocabularyLeak, match=f"novel class '{novel.name}'"):
        check_no_leak([category("house"), training], [category("tree"), novel])


def test_names_that_only_resemble_are_no_leak():
    check_no_leak([category("bow_(weapon)"), category("cat")], [category("bow_(decorative_ribbons)"), category("cats")])
    check_no_leak([], [category("cat")])
    check_no_leak([category("cat")], [])


def test_split_stops_at_a_leak(index):
    leaking = replace(index, categories=(replace(index.categories[0], synonyms=("Yak",)), *index.categories[1:]))
    with pytest.raises(VocabularyLeak, match="'yak'"):
        split_lvis_base(leaking)


def test_lvis_v1_has_no_leak_between_base_and_rare(shared_data):
    path = shared_data / "lvis_v1_train_cat_info.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    rows = json.loads(path.read_text())
    categories = [category(row["name"], *row["synonyms"], frequency=row["frequency"]) for row in rows]
    base = [c for c in categories if c.frequency != "r"]
    rare = [c for c in categories if c.frequency == "r"]
    assert (len(base), len(rare)) == (866, 337)
    check_no_leak(base, rare)
    with pytest.raises(VocabularyLeak, match="20 names"):
        check_no_leak([*base, *(replace(c, name=c.name.upper(), synonyms=()) for c in rare[:20])], [
            replace(c, synonyms=()) for c in rare
        ])  # fmt: skip
