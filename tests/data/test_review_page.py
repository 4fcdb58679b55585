"""The page to review boxes: the boxes it shows, its keys in a browser, and the file it saves."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import opened
from page_data import data_of
from PIL import Image

from ovd.data.annotations import load_annotations
from ovd.data.export.labeled_set import LabeledImage, LabeledSet
from ovd.data.report import DataReport
from ovd.data.review_page import crop_around, write_review

NAMES = ("cat", "</script><script>document.title='ran'</script>")
THRESHOLDS = (0.5, 0.3)


def image(file: str, *boxes: tuple[float, float, float, float, int, float]) -> LabeledImage:
    rows = np.array(boxes).reshape(-1, 6)
    classes = rows[:, 4].astype(np.int64)
    return LabeledImage(file, 120, 200, rows[:, :4].astype(np.float32), classes, rows[:, 5].astype(np.float32))


@pytest.fixture
def page(tmp_path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 120), "gray").save(tmp_path / name)
    kept = (
        image("a.png", (0, 0, 50, 60, 0, 0.9), (100, 20, 200, 120, 1, 0.35), (5, 70, 30, 110, 0, 0.52)),
        image("b.png", (10, 10, 40, 50, 1, 0.6)),
    )
    below = (image("a.png", (60, 5, 90, 30, 0, 0.49)), image("b.png", (50, 60, 80, 100, 1, 0.16)))
    whole, path = LabeledSet(tmp_path, NAMES, kept), tmp_path / "out.review.html"
    shown = write_review(
        whole, replace(whole, images=below), THRESHOLDS, path, limit=4, title="out.json", saved_as="out.reviewed.json"
    )
    assert shown == 4
    return path


def test_the_least_sure_boxes_come_first_and_all_kept_ones_are_there(page):
    data = data_of(page)
    assert [data["boxes"][row][6] for row, *_ in data["shown"]] == [0.49, 0.52, 0.35, 0.16]
    assert sorted(box[6] for box in data["boxes"] if box[7]) == [0.35, 0.52, 0.6, 0.9]
    assert NAMES[1] not in page.read_text()


def test_a_crop_holds_its_box_and_stays_in_the_image():
    pixels = np.zeros((90, 500, 3), np.uint8)
    for box in ([0, 0, 10, 10], [480, 70, 20, 20], [100, 10, 300, 80], [240, 30, 3, 3]):
        x, y, width, height = crop_around(pixels, np.array(box, np.float32))
        assert 0 <= x <= box[0]
        assert 0 <= y <= box[1]
        assert box[0] + box[2] <= x + width <= 500
        assert box[1] + box[3] <= y + height <= 90


def test_no_box_gives_a_page_that_says_so(tmp_path):
    Image.new("RGB", (200, 120)).save(tmp_path / "a.png")
    nothing = LabeledSet(tmp_path, NAMES, (image("a.png"),))
    path = tmp_path / "none.html"
    assert write_review(nothing, nothing, THRESHOLDS, path, limit=9, title="none", saved_as="none.json") == 0
    with opened(path) as browser:
        assert "no box" in browser.execute_script("return document.getElementById('progress').textContent")


def test_keys_decide_and_the_page_saves_the_whole_set(page, tmp_path):
    with opened(page, downloads=tmp_path) as browser:
        body = browser.find_element("tag name", "body")
        body.send_keys("a")  # accepts the candidate at 0.49
        body.send_keys("r")  # rejects the cat at 0.52
        body.send_keys("u")  # undoes that from the next box
        assert browser.find_element("id", "progress").text == "1 of 4 reviewed: 1 accepted, 0 rejected"
        body.send_keys("r")
        field = browser.find_element("id", "new-name")
        body.send_keys("n")
        field.send_keys("dog, big\n")  # renames the one at 0.35
        body.send_keys("r")  # rejects the candidate at 0.16
        body.send_keys("u")
        assert browser.title == "Review of out.json"
        progress = browser.find_element("id", "progress").text
        assert progress == "3 of 4 reviewed: 2 accepted, 1 rejected"
        browser.find_element("id", "save").click()
        saved = tmp_path / "out.reviewed.json"
        for _ in range(100):
            if saved.exists():
                break
            time.sleep(0.05)
    report = DataReport()
    index = load_annotations(saved, tmp_path, format="coco", report=report)
    assert report.counts() == {}
    assert [category.name for category in index.categories] == [*NAMES, "dog, big"]
    found = [
        (index.image_files[row], box, index.categories[name].name)
        for row in range(2)
        for box, name in zip(index.boxes[row].tolist(), index.classes[row].tolist(), strict=True)
    ]
    assert sorted(found) == [
        ("a.png", [0, 0, 50, 60], "cat"), ("a.png", [60, 5, 90, 30], "cat"),
        ("a.png", [100, 20, 200, 120], "dog, big"), ("b.png", [10, 10, 40, 50], NAMES[1]),
    ]  # fmt: skip
