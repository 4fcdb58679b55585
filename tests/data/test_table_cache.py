"""Cached annotation tables are those of the file as it is now."""

import json
import os
import pwd
from pathlib import Path

import pytest
from test_coco_columns import assert_equal, good_file

from ovd.data.formats import coco_columns, table_cache
from ovd.data.formats.coco_columns import read_columns
from ovd.data.formats.coco_json import read_coco_json
from ovd.data.formats.options import FormatOptions
from ovd.data.formats.table import AnnotationTable, ReadRequest
from ovd.data.report import DataReport


@pytest.fixture
def annotations(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OVD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(table_cache, "MIN_BYTES", 1)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(good_file()))
    return path


@pytest.fixture
def num_read(monkeypatch) -> list[int]:
    """Record the length of each annotation file that is read."""
    lengths: list[int] = []

    def counted(request, content, **options):
        lengths.append(len(content))
        return read_columns(request, content, **options)

    monkeypatch.setattr(coco_columns, "read_columns", counted)
    return lengths


def read(path: Path, *, index: bool = True, truth: bool = True, federated: bool = True, **more) -> AnnotationTable:
    images, options = more.get("images", Path("images")), FormatOptions(**more.get("options", {}))
    return read_coco_json(ReadRequest(path, images, options, index, truth), DataReport(), federated=federated)


@pytest.mark.parametrize("federated", [True, False])
@pytest.mark.parametrize(("index", "truth"), [(True, False), (False, True), (True, True)])
def test_a_file_is_read_once_for_each_thing_asked(annotations, num_read, index, truth, federated):
    read(annotations, index=not index or not truth, truth=True, federated=not federated)
    del num_read[:]
    first = read(annotations, index=index, truth=truth, federated=federated)
    assert len(num_read) == 1
    again = read(annotations, index=index, truth=truth, federated=federated)
    assert len(num_read) == 1
    assert_equal(again, first)
    assert read(annotations, index=index, truth=truth, federated=federated, images=None).images_root is None


def test_a_file_that_changed_is_read_anew_though_length_and_time_are_as_before(annotations, num_read):
    before, status = read(annotations), annotations.stat()
    content = annotations.read_text()
    annotations.write_text(content.replace('"category_id": 7', '"category_id": 5'))
    os.utime(annotations, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert annotations.stat().st_size == status.st_size
    assert (read(annotations).class_of_object != before.class_of_object).any()
    assert len(num_read) == 2
    read(annotations)
    assert len(num_read) == 2


def test_a_cached_table_is_not_that_of_images_by_base_name(annotations):
    content, images = json.loads(annotations.read_text()), annotations.parent / "images"
    (images / "deep").mkdir(parents=True)
    for image in content["images"]:
        image.pop("coco_url", None)
        image["file_name"] = f"../upload/{image['id']}.jpg"
        (images / "deep" / f"{image['id']}.jpg").write_bytes(b"")
    annotations.write_text(json.dumps(content))
    before = read(annotations, federated=False, images=images).image_files
    assert before is not None
    assert before[0].startswith("../upload/")
    found = read(annotations, federated=False, images=images, options={"by_base_name": True})
    assert found.image_files == tuple(f"deep/{image['id']}.jpg" for image in content["images"])


def test_a_cached_table_that_is_damaged_is_not_used(annotations, num_read):
    expected = read(annotations)
    (file,) = (annotations.parent / "cache" / "annotations").iterdir()
    whole = file.read_bytes()
    for position in range(0, len(whole), 41):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        assert_equal(read(annotations), expected)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert_equal(read(annotations), expected)


def test_what_another_reader_made_is_not_used(annotations, num_read, tmp_path, monkeypatch):
    read(annotations)
    (tmp_path / "reader.py").write_text("changed")
    monkeypatch.setattr(table_cache, "_READER", (tmp_path / "reader.py",))
    read(annotations)
    assert len(num_read) == 2


def test_small_files_and_what_depends_on_other_files_is_not_kept(annotations, num_read, tmp_path, monkeypatch):
    for _ in range(2):
        read(annotations, options={"by_base_name": True}, images=tmp_path)
    monkeypatch.setattr(table_cache, "MIN_BYTES", 2**24)
    for _ in range(2):
        read(annotations)
    assert len(num_read) == 4
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_does_no_harm(annotations, num_read, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OVD_CACHE", str(tmp_path / "file"))
    assert_equal(read(annotations), read(annotations))
    assert len(num_read) == 2


def test_the_faults_of_a_file_are_said_every_time(annotations, capsys):
    content = good_file()
    content["annotations"].append(content["annotations"][0] | {"id": 99})
    annotations.write_text(json.dumps(content))
    said = []
    for _ in range(2):
        report = DataReport()
        request = ReadRequest(annotations, None, FormatOptions(), index=True, truth=False)
        read_coco_json(request, report, federated=True)
        said.append((report.counts(), report.first_records(), capsys.readouterr().err))
    assert said[0] == said[1]
    assert said[0][0] == {("F2", "noticed"): 1}


def test_without_a_home_folder_the_file_is_read_each_time(annotations, num_read, monkeypatch):
    for name in ("OVD_CACHE", "HOME"):
        monkeypatch.delenv(name)

    def unknown(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert_equal(read(annotations), read(annotations))
    assert len(num_read) == 2
