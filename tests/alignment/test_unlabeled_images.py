"""The sources of images without labels."""

from pathlib import Path

import numpy as np
import pytest
from small_alignment import small_align_config, write_images
from small_run import source_of

from ovd.alignment.images import images_from_folder, images_from_shards
from ovd.build.alignment import load_unlabeled_images
from ovd.config.alignment import AlignData
from ovd.config_files import parse_config
from ovd.data.images.read import read_image
from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataError
from ovd.data.world.build import pair_scene
from ovd.data.world.settings import Settings


def test_a_folder_gives_all_images_below_it_in_the_order_of_their_paths(tmp_path):
    folder = write_images(tmp_path / "images", 7)
    (folder / "notes.txt").write_text("no image")
    images = images_from_folder(folder)
    assert len(images) == 7
    paths = [images.encoded(number) for number in range(7)]
    assert paths == sorted(path for path in folder.rglob("*.png"))
    part = images.take(np.array([2, 5]))
    assert [part.record(number).path for number in range(2)] == [paths[2], paths[5]]
    assert part.record(1).id == 5
    assert part.fingerprint == images.fingerprint
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    assert images_from_folder(folder).fingerprint != images.fingerprint
    (folder / "0.png").rename(folder / "z.png")
    assert images_from_folder(folder).fingerprint != images.fingerprint


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images_names_the_fix(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"{name}: no images .* set data\.source\.images to the folder"):
        images_from_folder(tmp_path / name)


def test_shards_give_their_images_and_a_part_of_them_the_first(tmp_path):
    write_pair_shards(tmp_path, (pair_scene(k, "pairs", Settings()) for k in range(5)), pairs_per_shard=3)
    images, shards = images_from_shards(tmp_path), PairShards(tmp_path)
    assert len(images) == 5
    assert images.encoded(4) == shards.image(4)
    assert read_image(images.encoded(0)).shape == (192, 192, 3)
    assert shards.location(4) in str(images.record(4).path)
    assert len(images_from_shards(tmp_path, 1)) == 3
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"no \.tar shards"):
        images_from_shards(tmp_path / "none")


def test_a_training_set_gives_its_images_and_none_of_its_labels(miniature_world):
    data = parse_config({"source": source_of(miniature_world, validated=False)}, AlignData, "test")
    images = load_unlabeled_images(data)
    assert len(images) > 50
    record = images.record(3)
    assert record.path.is_file()
    assert len(record.labels.boxes) == len(record.labels.negative_classes) == 0


def test_relative_folders_start_at_the_data_root(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", 3)
    monkeypatch.setenv("OVD_DATA", str(tmp_path))
    config = small_align_config(tmp_path / "run", Path("photos"))
    assert len(load_unlabeled_images(config.data)) == 3
