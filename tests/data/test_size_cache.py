"""Image sizes that are cached between runs are those of the images as they are now."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovd.data.images import size_cache
from ovd.data.images.image_file import ImageError
from ovd.data.images.size_cache import sizes_of
from ovd.data.images.sizes import read_sizes


@pytest.fixture
def paths(tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.setenv("OVD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(size_cache, "MIN_IMAGES", 5)
    for number in range(9):
        Image.new("RGB", (10 + number, 20)).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(9)]


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """Record the images whose headers are read."""
    opened: list[Path] = []

    def counted(paths, **options):
        opened.extend(paths)
        return read_sizes(paths, **options)

    monkeypatch.setattr(size_cache, "read_sizes", counted)
    return opened


def test_headers_are_read_once(paths, read):
    expected = [(20, 10 + number) for number in range(9)]
    assert sizes_of(paths) == expected
    assert read == paths
    assert sizes_of(paths) == expected
    assert read == paths
    assert sizes_of(paths[::-1]) == expected[::-1]  # another list gets its own sizes


@pytest.mark.parametrize("keeps", ["length", "time", "nothing"])
def test_an_image_that_changed_is_read_anew(paths, read, keeps):
    sizes_of(paths)
    before = paths[3].stat()
    Image.new("RGB", (7, 8)).save(paths[3])
    if keeps == "time":
        os.truncate(paths[3], paths[3].stat().st_size + 1)
        os.utime(paths[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    elif keeps == "length":
        os.truncate(paths[3], before.st_size)
        os.utime(paths[3], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    del read[:]
    assert sizes_of(paths)[3] == (8, 7)
    assert read == [paths[3]]


def test_errors_are_not_kept(paths, read):
    paths[2].write_text("no image")
    paths[4].unlink()
    for _ in range(2):
        found = sizes_of(paths)
        assert [error.code for error in found if isinstance(error, ImageError)] == ["F9", "F8"]
    assert read == [*paths, paths[2], paths[4]]
    Image.new("RGB", (7, 8)).save(paths[4])
    assert sizes_of(paths)[4] == (8, 7)


@pytest.mark.parametrize("damage", ["cut", "other shape", "text", "pickle"])
def test_a_damaged_file_counts_as_none(paths, read, damage):
    expected = sizes_of(paths)
    (file,) = size_cache._file_of(paths).parent.iterdir()
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:100])
        case "other shape":
            np.save(file, np.zeros((3, 4), np.int64))
        case "text":
            file.write_text("sizes")
        case "pickle":
            np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    assert sizes_of(paths) == expected
    assert read == paths * 2
    assert sizes_of(paths) == expected
    assert read == paths * 2  # the cache was rewritten, so nothing is read again


def test_without_a_place_to_write_all_are_read(paths, read, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OVD_CACHE", str(tmp_path / "file"))
    assert sizes_of(paths) == sizes_of(paths)
    assert read == paths * 2


def test_short_lists_are_not_kept(paths, read, tmp_path):
    assert sizes_of(paths[:4]) == [(20, 10 + number) for number in range(4)]
    assert not (tmp_path / "cache").exists()


def test_a_name_with_half_a_character_is_an_unreadable_image(paths):
    sizes = sizes_of([*paths, paths[0].with_name("\ud800.png")])
    assert sizes[:-1] == sizes_of(paths)
    assert isinstance(sizes[-1], ImageError)
    assert sizes[-1].code == "F9"
