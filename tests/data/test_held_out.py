"""Images and names held out of a training set: the same in whatever order the set is and with whatever seed."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from small_run import small_config

from ovd.build.data import hold_out, load_training_index
from ovd.build.learner import build_learner
from ovd.config.training import TrainConfig
from ovd.config_files import ConfigError
from ovd.data.held_out import CalibrationOptions, held_out_images, held_out_names
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataReport
from ovd.data.vocabulary import keep_classes
from ovd.jobs.train import train_from_config
from ovd.jobs.training_start import choose_start


def config_of(world: Path, calibration: dict[str, Any] | None, **changes: Any) -> TrainConfig:
    return small_config(Path("run"), world, train={"calibration": calibration, **changes.pop("train", {})}, **changes)


@pytest.fixture(scope="module")
def index(miniature_world) -> AnnotationIndex:
    return load_training_index(config_of(miniature_world, None), DataReport())


def ids_of(index: AnnotationIndex, images: int) -> set[int]:
    return set(index.image_ids[held_out_images(index, images)].tolist())


def names_of(index: AnnotationIndex, share: float) -> set[str]:
    chosen = held_out_names(index, CalibrationOptions(names=share))
    return {category.name for category, is_out in zip(index.categories, chosen, strict=True) if is_out}


def test_the_choice_does_not_depend_on_orders_category_ids_or_the_seed(miniature_world, index, tmp_path):
    content = json.loads((miniature_world / "annotations" / "lvis_train.json").read_text())
    renumbered = {category["id"]: 5000 - 3 * category["id"] for category in content["categories"]}
    for category in content["categories"]:
        category["id"] = renumbered[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = renumbered[annotation["category_id"]]
    for image in content["images"]:
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[name] = [renumbered[category] for category in image[name]]
    for part in ("images", "categories", "annotations"):
        content[part] = content[part][::-1]
    (tmp_path / "shuffled.json").write_text(json.dumps(content))
    source = {"train_annotations": str(tmp_path / "shuffled.json"), "train_images": str(miniature_world / "images")}
    data = {"source": {"kind": "files", "format": "lvis", **source}}
    shuffled_config = config_of(miniature_world, {}, train={"seed": 3}, data=data)
    shuffled = load_training_index(shuffled_config, DataReport())
    assert shuffled.image_ids.tolist() != index.image_ids.tolist()
    assert [category.name for category in shuffled.categories] != [category.name for category in index.categories]
    assert ids_of(shuffled, 5) == ids_of(index, 5)
    assert names_of(shuffled, 0.3) == names_of(index, 0.3)
    _, held_out = hold_out(shuffled_config, shuffled)
    _, original = hold_out(config_of(miniature_world, {}), index)
    assert held_out is not None
    assert original is not None
    assert set(held_out.index.image_ids.tolist()) == set(original.index.image_ids.tolist())


def test_they_are_the_first_in_the_order_of_their_hashes(index):
    def digest(name: object) -> str:
        return hashlib.sha256(str(name).encode()).hexdigest()

    assert ids_of(index, 5) == set(sorted(index.image_ids.tolist(), key=digest)[:5])
    names = [category.name for category in index.categories]
    assert names_of(index, 0.25) == set(sorted(names, key=digest)[: round(0.25 * len(names))])


@pytest.mark.parametrize("images", [1, 3, 7, 8, 400])
def test_images_are_as_many_as_asked_for_but_at_most_a_tenth(index, images):
    assert len(ids_of(index, images)) == min(images, len(index) // 10)
    assert ids_of(index, 1) <= ids_of(index, images)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_names_are_the_share_asked_for_and_more_hold_out_the_same_and_others(index, share):
    names = names_of(index, share)
    assert abs(len(names) - share * len(index.categories)) <= 0.5
    assert names <= names_of(index, 0.995)


def test_a_changed_image_or_name_leaves_the_place_of_all_others(index):
    fewer = index.take(np.flatnonzero(index.image_ids != min(ids_of(index, 5))))
    assert len(ids_of(fewer, 5) & ids_of(index, 5)) == 4


@pytest.mark.parametrize("options", [{"images": 0}, {"names": -0.1}, {"names": 1.0}])
def test_shares_and_counts_out_of_range_are_refused(options):
    with pytest.raises(ValidationError, match=r"should be (greater|less) than"):
        CalibrationOptions(**options)


def test_the_split_is_disjoint_and_complete_and_keeps_labels_and_vocabulary(miniature_world, index):
    trained, held_out = hold_out(config_of(miniature_world, {"images": 5, "names": 0.3}), index)
    assert held_out is not None
    assert len(held_out.index) == 5
    assert sorted([*trained.image_ids.tolist(), *held_out.index.image_ids.tolist()]) == sorted(index.image_ids.tolist())
    assert trained.categories == held_out.index.categories == index.categories
    assert held_out.names.sum() == round(0.3 * len(index.categories))
    whole = {index.record(row).id: index.record(row) for row in range(len(index))}
    for part in (trained, held_out.index):
        for row in range(len(part)):
            record, original = part.record(row), whole[part.record(row).id]
            assert record.path == original.path
            for name, values in vars(original.labels).items():
                np.testing.assert_array_equal(getattr(record.labels, name), values)
    counts = Counter(trained.classes.values.tolist()) + Counter(held_out.index.classes.values.tolist())
    assert counts == Counter(index.classes.values.tolist())


def test_without_the_option_nothing_is_held_out(miniature_world, index):
    trained, held_out = hold_out(config_of(miniature_world, None), index)
    assert trained is index
    assert held_out is None


def test_a_set_of_less_than_ten_images_stops_with_the_name_of_its_file(miniature_world, index):
    config = config_of(miniature_world, {})
    with pytest.raises(ValueError, match=r"lvis_train\.json: 9 images .*set train\.calibration=null"):
        hold_out(config, index.take(np.arange(9)))
    trained, held_out = hold_out(config, index.take(np.arange(10)))
    assert held_out is not None
    assert (len(trained), len(held_out.index)) == (9, 1)


def test_a_name_is_always_left_to_train_on(index):
    few = keep_classes(index, np.arange(4))
    assert len(names_of(few, 0.99)) == 3


def test_an_earlier_stage_leaves_out_the_images_that_a_later_one_is_calibrated_on(miniature_world, tmp_path, capsys):
    later = small_config(tmp_path / "later", miniature_world, train={"calibration": {"images": 4, "names": 0}})
    index = load_training_index(later)
    _, held_out = hold_out(later, index)
    assert held_out is not None
    quick = {"steps": 1, "warmup_steps": 0}
    earlier = small_config(tmp_path / "earlier", miniature_world, data={"held_out": 4}, train=quick)
    left, none = hold_out(earlier, index)
    assert none is None
    assert set(left.image_ids) == set(index.image_ids) - set(held_out.index.image_ids)
    with pytest.raises(ConfigError, match=r"data\.held_out cannot be combined"):
        small_config(tmp_path, miniature_world, data={"held_out": 4}, train={"calibration": {}})

    train_from_config(earlier, evaluate=False)
    plain = small_config(tmp_path / "plain", miniature_world, train=quick)
    train_from_config(plain, evaluate=False)
    for start, warned in ((earlier, False), (plain, True)):
        capsys.readouterr()
        onward = later.model_copy(update={"init_from": start.output, "init_state": "training"})
        learner = build_learner(onward, num_classes=len(index.categories))
        choose_start(onward, None, learner)
        assert ("was trained on images that train.calibration holds out" in capsys.readouterr().err) == warned
