"""Images that are not at the paths that the annotations name."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from ovd.data.annotations import load_annotations
from ovd.data.formats.image_names import check_images_exist, files_by_base_name
from ovd.data.formats.options import FormatOptions
from ovd.data.report import DataError, DataReport

FILES = ("a/one.jpg", "b/two.PNG", "b/three dots.jpg", "per%20cent.jpg")


@pytest.fixture
def images(tmp_path) -> Path:
    for file in FILES:
        path = tmp_path / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(path)
    return tmp_path / "images"


def check(images: Path, files: list[str], *, all_needed: bool = False) -> int:
    return check_images_exist(Path("train.json"), files, images, all_needed=all_needed, has_option=True)


@pytest.mark.parametrize(
    "names",
    [
        ["images/one.jpg", "x/two.PNG", "three dots.jpg", "per%20cent.jpg"],
        ["..\\upload\\1\\one.jpg", "C:\\two.png", "three%20dots.JPG", "upload\\per%20cent.jpeg"[:-4] + "jpg"],
        ["/data/upload/1/one.JPG", "/two.Png", "b%2Fthree%20dots.jpg", "per%2520cent.jpg"],
    ],
)
def test_names_with_other_folders_suffixes_and_percent_signs_are_found_by_their_last_part(images, names):
    with pytest.raises(DataError, match=r"All can be found by base name, .*data\.source\.by_base_name=true") as caught:
        check(images, names, all_needed=True)
    assert caught.value.code == "F8"
    assert files_by_base_name(Path("train.json"), names, images) == FILES


def test_all_images_missing_is_one_message(images):
    with pytest.raises(
        DataError,
        match=r"train\.json: none of 24 images found in .*; missing: 0\.jpg, 1\.jpg, 2\.jpg and 21 more\. No im",
    ):
        check(images, [f"{number}.jpg" for number in range(24)])
    with pytest.raises(DataError, match=r"the folder of its images, .*, does not exist"):
        check(images / "elsewhere", ["one.jpg"])


def test_a_few_missing_are_left_to_the_loader_and_stop_an_evaluation(images):
    files = [*FILES, "gone.jpg"]
    assert check(images, list(FILES), all_needed=True) == 0
    assert check(images, files) == 1
    with pytest.raises(DataError, match=r"only 4 of 5 images found in .*: gone\.jpg\. By base name, 4 can be found"):
        check(images, files, all_needed=True)
    with pytest.raises(DataError, match="only 4 of 9 images found in"):
        check(images, [*FILES, *(f"gone{number}.jpg" for number in range(5))])


def test_base_names_that_clash_are_refused(images):
    Image.new("RGB", (30, 20)).save(images / "b" / "one.JPG", format="JPEG")
    with pytest.raises(DataError, match=r"one\.jpg may be a/one\.jpg or b/one\.JPG"):
        files_by_base_name(Path("train.json"), ["x/one.jpg"], images)
    with pytest.raises(DataError, match=r"1/two\.PNG and 2/two\.png are both b/two\.PNG"):
        files_by_base_name(Path("train.json"), ["1/two.PNG", "2/two.png"], images)
    with pytest.raises(DataError, match="not all base names are unique"):
        check(images, ["x/one.jpg"])


@pytest.mark.parametrize("sides", [{}, {"height": 20, "width": 30}])
def test_a_json_file_is_read_with_the_option_and_without_sizes_too(images, tmp_path, sides):
    rows = [{"id": n, "file_name": f"/up/{file.upper().split('/')[-1]}".replace("ONE", "one"), **sides}
            for n, file in enumerate(FILES[:1])]  # fmt: skip
    content = {"images": rows, "annotations": [], "categories": [{"id": 1, "name": "gull"}]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    options = FormatOptions(by_base_name=True)
    index = load_annotations(path, images, format="coco", report=DataReport(), options=options)
    assert index.image_files == ("a/one.jpg",)
    assert index.image_sizes.tolist() == [[20, 30]]
    if not sides:
        with pytest.raises(DataError, match=r"none of 1 image found in .* All can be found by base name"):
            load_annotations(path, images, format="coco", report=DataReport())


def test_voc_has_the_option_too_and_yolo_has_not(images, tmp_path):
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = "C:\\photos\\two.png"
    (tmp_path / "xml").mkdir()
    ElementTree.ElementTree(root).write(tmp_path / "xml" / "1.xml")
    options = FormatOptions(by_base_name=True)
    index = load_annotations(tmp_path / "xml", images, format="voc", report=DataReport(), options=options)
    assert index.image_files == ("b/two.PNG",)
    with pytest.raises(ValueError, match="option by_base_name cannot be used with format yolo"):
        load_annotations(tmp_path / "xml", images, format="yolo", report=DataReport(), options=options)


def test_accents_as_one_character_or_two(tmp_path):
    """Names match in both Unicode forms: macOS writes a letter and its accent, most other systems one character."""
    (tmp_path / "cafe\u0301.jpg").touch()
    files = ["caf\u00e9.jpg"]
    with pytest.raises(DataError, match="All can be found by base name"):
        check(tmp_path, files)
    assert files_by_base_name(tmp_path / "a.json", files, tmp_path) == ("cafe\u0301.jpg",)
