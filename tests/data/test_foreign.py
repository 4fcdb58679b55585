"""The foreign data sets: exhaustive, repeatable, and without a name or word for anything in the embedded world."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovd.choices import Domain
from ovd.data.report import DataReport
from ovd.data.world.foreign import ForeignSettings, build_foreign, few_images, foreign_classes
from ovd.data.world.foreign_drawing import LAYERS
from ovd.data.world.glyphs import load_glyphs

DOMAINS: tuple[Domain, ...] = ("shapes", "strokes", "composites")


def small(domain: Domain, seed: int = 0) -> ForeignSettings:
    return ForeignSettings(domain, seed=seed, num_train=24, num_val=4, num_pairs=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[Domain, Path]:
    root = tmp_path_factory.mktemp("foreign")
    return {domain: build_foreign(root, small(domain)) for domain in DOMAINS}


def test_names_are_distinct_and_none_is_the_worlds() -> None:
    known = {text for glyph in load_glyphs() for text in (glyph.name, *glyph.synonyms)}
    for domain, count in zip(DOMAINS, (64, 24, 16), strict=True):
        classes = foreign_classes(domain)
        texts = [text for item in classes for text in (item.name, *item.synonyms)]
        assert len(classes) == count
        assert len(set(texts)) == len(texts)
        assert not known & set(texts)
        assert len({item.words for item in classes} | set(texts)) == len(texts) + count
    assert [item.synonyms for item in foreign_classes("shapes") if item.name == "red ring"] == [("red hoop",)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_of_a_domain_is_drawn_unlike_the_others(domain: Domain) -> None:
    """All classes of a domain look different when drawn from the same random numbers, so that only the class
    differs."""
    pictures = []
    for item in foreign_classes(domain):
        layers = LAYERS[domain](np.random.default_rng(0), item.parts)
        canvas = np.full((*layers[0][0].shape, 3), 128.0)
        for mask, color in layers:
            assert (mask > 127).any()
            canvas[mask > 127] = color
        pictures.append(canvas.reshape(-1))
    distances = [np.abs(one - other).mean() for n, one in enumerate(pictures) for other in pictures[:n]]
    assert min(distances) > 0.8


@pytest.mark.parametrize("domain", DOMAINS)
def test_boxes_are_inside_and_lie_on_something_drawn(domain: Domain, folders) -> None:
    from ovd.build.data import load_evaluation_index

    folder = folders[domain]
    report = DataReport()
    index = load_evaluation_index(folder / "val.json", folder / "images" / "val", "coco", report=report)
    assert len(index) == 4
    assert len(index.boxes.values) > 4
    content = json.loads((folder / "val.json").read_text())
    for image in content["images"]:
        pixels = np.asarray(Image.open(folder / "images" / "val" / image["file_name"]), dtype=np.float32)
        assert pixels.shape == (image["height"], image["width"], 3)
        for row in content["annotations"]:
            if row["image_id"] == image["id"]:
                x, y, width, height = (int(value) for value in row["bbox"])
                assert 0 <= x < x + width <= image["width"]
                assert 0 <= y < y + height <= image["height"]
                assert pixels[y : y + height, x : x + width].std(axis=(0, 1)).max() > 5


def test_the_same_boxes_under_other_names(folders) -> None:
    folder = folders["shapes"]
    val, synonyms, words = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("val", "val_synonyms", "val_words")
    )
    assert words["annotations"] == val["annotations"]
    assert [row["id"] for row in words["categories"]] == [row["id"] for row in val["categories"]]
    assert words["categories"][0]["name"] == "octagon colored red"
    named = {row["id"]: row["name"] for row in synonyms["categories"]}
    assert named == {row["id"]: row["synonyms"][0] for row in val["categories"] if row["synonyms"]}
    assert synonyms["annotations"] == [row for row in val["annotations"] if row["category_id"] in named]


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(folders, tmp_path) -> None:
    again = build_foreign(tmp_path, small("strokes"))
    other = build_foreign(tmp_path, small("strokes", seed=1))
    name = Path("images") / "train" / "000001.jpg"
    assert (again / name).read_bytes() == (folders["strokes"] / name).read_bytes()
    assert (again / "train.json").read_bytes() == (folders["strokes"] / "train.json").read_bytes()
    assert (other / name).read_bytes() != (again / name).read_bytes()
    before = (again / "train.json").stat().st_mtime_ns
    assert build_foreign(tmp_path, small("strokes")) == again
    assert (again / "train.json").stat().st_mtime_ns == before


def test_train_val_and_pairs_are_different_scenes(folders) -> None:
    folder = folders["composites"]
    first = [(folder / "images" / part / "000001.jpg").read_bytes() for part in ("train", "val")]
    with tarfile.open(folder / "pairs" / "00000.tar") as shard:
        members = {member.name: shard.extractfile(member).read() for member in shard}  # type: ignore[union-attr]
    captions = [text.decode() for name, text in members.items() if name.endswith(".txt")]
    pictures = [content for name, content in members.items() if name.endswith(".jpg")]
    assert len(captions) == len(pictures) == 3
    assert len({*first, *pictures}) == 5
    names = [item.name for item in foreign_classes("composites")]
    assert all(any(name in caption for name in names) for caption in captions)
    assert Image.open(io.BytesIO(pictures[0])).size == (192, 192)


def test_few_images_hold_enough_boxes_of_every_class_and_not_many_more(folders) -> None:
    folder = folders["composites"]
    whole = json.loads((folder / "train.json").read_text())
    few = json.loads(few_images(folder, 2, seed=0).read_text())
    available = Counter(row["category_id"] for row in whole["annotations"])
    counts = Counter(row["category_id"] for row in few["annotations"])
    assert all(counts[row["id"]] >= min(2, available[row["id"]]) for row in whole["categories"])
    kept = {row["id"] for row in few["images"]}
    assert few["annotations"] == [row for row in whole["annotations"] if row["image_id"] in kept]
    assert len(kept) < len(whole["images"])
    assert few_images(folder, 2, seed=1).read_text() != json.dumps(few)


def test_what_a_killed_run_left_unfinished_is_drawn_again(folders, tmp_path) -> None:
    folder = build_foreign(tmp_path, small("composites"))
    (folder / ".done").unlink()
    (folder / "pairs" / "manifest.json").unlink()
    assert build_foreign(tmp_path, small("composites")) == folder
    for name in ("00000.tar", "manifest.json"):
        assert (folder / "pairs" / name).read_bytes() == (folders["composites"] / "pairs" / name).read_bytes()
