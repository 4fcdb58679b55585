"""The embedded world: its scenes, labels and captions are true and repeatable, and rarity follows its settings."""

import hashlib
import json
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovd.data.annotations import load_annotations
from ovd.data.pairs.tar import PairShards
from ovd.data.report import DataReport
from ovd.data.vocabulary import split_lvis_base
from ovd.data.world.build import build_world, detection_scene, generator, train_counts
from ovd.data.world.captions import caption
from ovd.data.world.glyphs import glyph_mask, load_glyphs
from ovd.data.world.layout import annotate, deal
from ovd.data.world.scene import MAX_OVERLAP, DrawnObject
from ovd.data.world.settings import Settings

SMALL = Settings(max_images_per_class=1, val_boxes_per_class=1, num_pairs=8, num_transfer_images=20, pairs_per_shard=5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("world"), ("val", "pairs", "coco", "objects365"), SMALL)


def test_settings_are_frozen():
    """The settings must not be tuned to results: other settings make another world, whose metrics cannot be compared
    with earlier ones."""
    assert Settings().key() == "4acfe64dd02e"


def test_classes_are_250_to_320_with_distinct_names_and_synonyms():
    glyphs = load_glyphs()
    assert 250 <= len(glyphs) <= 320
    names = [name for glyph in glyphs for name in (glyph.name, *glyph.synonyms)]
    assert len(set(names)) == len(names)
    masks = {glyph_mask(glyph.character, 24).tobytes() for glyph in glyphs}
    assert len(masks) == len(glyphs)


def test_class_counts_follow_lvis_and_three_tenths_are_rare():
    counts = train_counts(Settings())
    assert counts.min() == 1
    assert counts.max() == 128
    assert 0.25 <= (counts <= 10).mean() <= 0.35
    assert 0.25 <= (counts > 100).mean() <= 0.40
    assert not np.array_equal(counts, train_counts(Settings(seed=1)))


def test_dealing_keeps_every_object_and_the_sizes_of_scenes():
    counts = np.array([5, 0, 70, 25])
    settings = Settings()
    layout = deal(np.random.default_rng(0), counts, settings.objects_per_image)
    dealt = Counter(glyph for scene in layout for glyph in scene)
    assert dealt[1] == 0
    assert all(dealt[glyph] >= count for glyph, count in enumerate(counts))
    assert all(1 <= len(scene) <= 8 for scene in layout)


def test_scenes_are_functions_of_the_seed_and_boxes_are_tight_and_apart():
    settings = Settings()
    glyphs = (10, 60, 110, 160, 210)
    scene, encoded = detection_scene(4, glyphs, "train", settings.train_style, settings)
    again, encoded_again = detection_scene(4, glyphs, "train", settings.train_style, settings)
    assert encoded == encoded_again
    assert scene.objects == again.objects
    assert detection_scene(5, glyphs, "train", settings.train_style, settings)[1] != encoded
    assert detection_scene(4, glyphs, "val", settings.train_style, settings)[1] != encoded
    boxes = [item.box for item in scene.objects]
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= 192
        assert 0 <= y0 < y1 <= 192
        assert 14 <= max(x1 - x0, y1 - y0) <= 100
    for i, (a0, b0, a1, b1) in enumerate(boxes):
        for x0, y0, x1, y1 in boxes[:i]:
            shared = max(0, min(a1, x1) - max(a0, x0)) * max(0, min(b1, y1) - max(b0, y0))
            assert shared <= MAX_OVERLAP * min((a1 - a0) * (b1 - b0), (x1 - x0) * (y1 - y0))


def test_annotation_hides_classes_but_never_below_the_least_count():
    settings = replace(Settings(), hidden_class_probability=1.0)
    remaining = np.array([16, 15, 3])
    seen = annotate(np.random.default_rng(0), (0, 1, 2), remaining, 15, settings)
    assert seen.shown == (False, True, True)
    assert remaining.tolist() == [15, 15, 3]


def test_federated_lists_are_true():
    """Negative classes are absent; a not exhaustive class is present, with an instance left out."""
    settings = replace(Settings(), not_exhaustive_probability=1.0, hidden_class_probability=0.0)
    seen = annotate(np.random.default_rng(0), (3, 3, 5), np.full(40, 100), 1, settings)
    assert not {3, 5} & set(seen.negatives)
    assert seen.not_exhaustive == (3,)
    assert sorted(seen.shown[:2]) == [False, True]
    assert seen.shown[2]


@pytest.mark.parametrize("part", ["train", "val"])
def test_lvis_parts_load_with_the_loader_for_real_lvis(world, part):
    report = DataReport()
    path = world / "annotations" / f"lvis_{part}.json"
    index = load_annotations(path, world / "images", format="lvis", report=report)
    assert len(index.categories) == len(load_glyphs())
    content = json.loads(path.read_text())
    images_of = defaultdict(set)
    for row in content["annotations"]:
        images_of[row["category_id"]].add(row["image_id"])
    assert all(category["image_count"] == len(images_of[category["id"]]) for category in content["categories"])
    assert sum(len(index.record(row).labels.boxes) for row in range(len(index))) == len(content["annotations"])
    assert all(index.record(row).path.is_file() for row in range(len(index)))


def test_rarity_in_val_is_that_of_train(world):
    frequency = [
        {row["id"]: row["frequency"] for row in json.loads(path.read_text())["categories"]}
        for path in (world / "annotations" / "lvis_train.json", world / "annotations" / "lvis_val.json")
    ]
    assert frequency[0] == frequency[1]


def test_pairs_are_captioned_shards_that_keep_their_boxes_apart(world):
    shards = PairShards(world / "pairs")
    assert len(shards) == SMALL.num_pairs
    for pair in (shards[index] for index in range(len(shards))):
        assert len(pair.info["boxes"]) == len(pair.info["names"])


def test_transfer_sets_load_with_gaps_in_their_ids(world):
    for part, classes in (("coco", 80), ("objects365", len(load_glyphs()))):
        path = world / "annotations" / f"{part}.json"
        index = load_annotations(path, world / "images" / part, format="coco", report=DataReport())
        assert len(index.categories) == classes
        assert index.categories[-1].id > classes
        assert all(index.record(row).path.is_file() for row in range(len(index)))


def tree_digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes_and_a_cut_run_is_finished(world, tmp_path):
    again = build_world(tmp_path, ("pairs",), SMALL)
    assert tree_digest(again / "pairs") == tree_digest(world / "pairs")
    (again / ".pairs.done").unlink()  # as if the run was killed before its end
    (again / "pairs" / "manifest.json").unlink()
    build_world(tmp_path, ("pairs",), SMALL)
    assert tree_digest(again / "pairs") == tree_digest(world / "pairs")


def test_a_finished_part_is_not_drawn_again(world):
    before = (world / "annotations" / "coco.json").stat().st_mtime_ns
    build_world(world.parent, ("coco",), SMALL)
    assert (world / "annotations" / "coco.json").stat().st_mtime_ns == before


def test_of_two_that_need_a_part_one_draws_and_the_other_waits(tmp_path, monkeypatch):
    drawn = []

    def draw(folder, part, settings):
        time.sleep(0.3)
        drawn.append(part)

    monkeypatch.setattr("ovd.data.world.build._draw_part", draw)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: build_world(tmp_path, ("pairs", "coco"), SMALL), range(2)))
    assert folders[0] == folders[1]
    assert drawn == ["pairs", "coco"]


def test_a_file_system_without_locks_is_drawn_on(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")  # as Lustre's without the mount option flock

    monkeypatch.setattr("fcntl.flock", flock)
    folder = build_world(tmp_path, ("pairs",), SMALL)
    assert (folder / ".pairs.done").exists()


def test_unknown_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown part 'vall'"):
        build_world(tmp_path, ("vall",), SMALL)


def test_captions_without_noise_name_every_object_and_count():
    quiet = replace(Settings(), caption_omission=0.0, caption_synonym=0.0, caption_color=0.0, caption_wrong_word=0.0)
    table = load_glyphs()
    objects = tuple(DrawnObject(glyph, (0.0, 0.0, 1.0, 1.0), "red") for glyph in (4, 4, 90))
    text = caption(np.random.default_rng(0), objects, quiet)
    assert f"two {table[4].name}" in text
    assert table[90].name in text


def test_captions_of_everything_omitted_are_empty():
    silent = replace(Settings(), caption_omission=1.0)
    assert caption(np.random.default_rng(0), (DrawnObject(4, (0.0, 0.0, 1.0, 1.0), "red"),), silent) == ""


def test_caption_noise_rates_are_those_of_the_settings():
    settings = Settings()
    table = load_glyphs()
    with_synonym = next(i for i, glyph in enumerate(table) if glyph.synonyms and glyph.name == "umbrella")
    item = (DrawnObject(with_synonym, (0.0, 0.0, 1.0, 1.0), "red"),)
    rng = generator(settings, "pairs")
    texts = [caption(rng, item, settings) for _ in range(2000)]
    assert abs(sum(text == "" for text in texts) / 2000 - settings.caption_omission) < 0.04
    named = [text for text in texts if text]
    assert abs(sum("red" in text for text in named) / len(named) - settings.caption_color) < 0.04
    assert abs(sum("parasol" in text for text in named) / len(named) - settings.caption_synonym) < 0.05


def test_rare_names_never_reach_the_base_vocabulary(world):
    path = world / "annotations" / "lvis_val.json"
    content = json.loads(path.read_text())
    for row in content["categories"]:
        row["frequency"] = "r" if row["id"] % 3 == 0 else "f"
    changed = world / "annotations" / "changed.json"
    changed.write_text(json.dumps(content))
    index = load_annotations(changed, world / "images", format="lvis", report=DataReport())
    base = split_lvis_base(index)
    rare = {category.name for category in index.categories if category.frequency == "r"}
    assert rare
    assert not rare & {category.name for category in base.categories}
    assert len(base) == len(index)  # images are kept, without their rare boxes
