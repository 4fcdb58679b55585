"""YOLO text labels: the search for files, rows of boxes and polygons, sizes from image headers, and faults."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ovd.data.annotations import load_annotations, load_truth
from ovd.data.check import check_images
from ovd.data.formats.options import FormatOptions
from ovd.data.images.image_file import ImageError
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataError, DataReport, Finding

SIZE = (40, 60)
ROW = "1 0.5 0.25 0.1 0.2\n"


def save(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path, exif=exif)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path) -> Path:
    """Root of two training images, the second with an empty label file, and one validation image."""
    for name in ("train/a", "train/b", "val/c"):
        save(tmp_path / "images" / f"{name}.png")
    write(tmp_path / "labels" / "train" / "a.txt", ROW)
    write(tmp_path / "labels" / "train" / "b.txt", "")
    write(tmp_path / "labels" / "val" / "c.txt", ROW + ROW)
    set_data(tmp_path)
    return tmp_path


def set_data(root: Path, **changes) -> None:
    data = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"], **changes}
    write(root / "data.yaml", yaml.safe_dump({key: value for key, value in data.items() if value is not None}))


def load(
    root: Path, report: DataReport | None = None, images: Path | None = None, split: str | None = None, **more
) -> AnnotationIndex:
    return load_annotations(
        root / "data.yaml", images, format="yolo", report=report or DataReport(),
        options=FormatOptions(split=split), **more,
    )  # fmt: skip


def files(index: AnnotationIndex) -> list[str]:
    return [index.encoded(image).name for image in range(len(index))]


def test_splits_and_images_without_labels(root):
    (root / "labels" / "train" / "b.txt").unlink()
    index = load(root)
    assert files(index) == ["a.png", "b.png"]
    np.testing.assert_allclose(index.boxes[0], [[27, 6, 33, 14]])
    assert [len(index.boxes[image]) for image in range(2)] == [1, 0]
    assert index.image_sizes.tolist() == [list(SIZE)] * 2
    assert [(category.id, category.name) for category in index.categories] == [(0, "cat"), (1, "dog")]
    assert files(load(root, with_truth=True)) == ["c.png"]  # an evaluation takes the validation split
    assert files(load(root, with_truth=True, split="train")) == ["a.png", "b.png"]
    assert files(load(root, split="val")) == ["c.png"]
    assert len(load_truth(root / "data.yaml", format="yolo").boxes_xywh) == 2
    write(root / "labels" / "train" / "b.txt", "\n  \n")
    assert len(load(root).boxes[1]) == 0


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("images/train/", ["a.png", "b.png"]),
        (["images/val", "images/train"], ["c.png", "a.png", "b.png"]),
        ("list.txt", ["c.png", "a.png"]),
        (["list.txt", "more.txt"], ["c.png", "a.png", "b.png"]),
        ("../images/train", ["a.png", "b.png"]),  # as Roboflow exports it
        ("images", ["a.png", "b.png", "c.png"]),
    ],
)
def test_images_come_from_folders_and_lists(root, train, expected):
    write(root / "list.txt", f"./images/val/c.png\n\n{root}/images/train/a.png\n")
    write(root / "more.txt", "images/train/b.png\n")
    set_data(root, train=train)
    index = load(root)
    assert files(index) == expected
    assert index.image_ids.tolist() == list(range(len(expected)))
    a = expected.index("a.png")
    assert len(index.boxes[a]) == 1


def test_where_paths_start(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "data.yaml"
    data = {"path": str(root), "train": "images/train", "names": {0: "cat", 1: "dog"}}
    write(elsewhere, yaml.safe_dump(data))
    by_path = load(elsewhere.parent)
    assert files(by_path) == ["a.png", "b.png"]
    assert by_path.image_files == ("images/train/a.png", "images/train/b.png")
    write(elsewhere, yaml.safe_dump({**data, "path": "/none"}))
    with pytest.raises(DataError, match="/none/images/train is not a folder") as caught:
        load(elsewhere.parent)
    assert caught.value.code == "F1"
    assert load(elsewhere.parent, images=root).fingerprint() == by_path.fingerprint()
    set_data(root, path="images", train="train")
    assert files(load(root)) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("d/images/x/images/y/a.png", "d/images/x/labels/y/a.txt"),
        ("d/images/x/images/y/a.png", "d/images/x/images/y/a.txt"),
        ("d/photos/a.b.png", "d/photos/a.b.txt"),
        ("images.png", "images.txt"),
    ],
)
def test_the_label_file_replaces_the_last_images_or_lies_beside(tmp_path, image, label):
    save(tmp_path / image)
    write(tmp_path / label, ROW)
    write(tmp_path / "list.txt", f"{image}\n")
    set_data(tmp_path, train="list.txt")
    assert len(load(tmp_path).boxes[0]) == 1


@pytest.mark.parametrize("layout", ["beside", "folders"])
def test_a_folder_with_classes_txt(tmp_path, layout):
    images = tmp_path / "images" if layout == "folders" else tmp_path
    labels = tmp_path / "labels" if layout == "folders" else tmp_path
    for name in ("sub/a", "b"):
        save(images / f"{name}.png")
    write(labels / "sub" / "a.txt", ROW)
    write(tmp_path / "classes.txt", "cat\ndog\n")
    for given in (None, images):
        index = load_annotations(tmp_path, given, format="yolo", report=DataReport())
        assert files(index) == ["b.png", "a.png"]
        assert [len(index.boxes[image]) for image in range(2)] == [0, 1]
        assert index.categories[1].name == "dog"
    with pytest.raises(ValueError, match="has no splits"):
        load_annotations(tmp_path, None, format="yolo", report=DataReport(), options=FormatOptions(split="val"))


def test_labels_beside_the_images_do_not_mix_with_those_of_the_folder(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "labels" / f"{name}.txt", ROW)  # labels of another set
    write(tmp_path / "mine" / "classes.txt", "cat\ndog\n")
    write(tmp_path / "mine" / "a.txt", ROW)
    index = load_annotations(tmp_path / "mine", tmp_path / "images", format="yolo", report=DataReport())
    assert [len(index.boxes[image]) for image in range(2)] == [1, 0]


def test_labels_beside_the_images_of_a_folder_elsewhere(tmp_path):
    save(tmp_path / "obj" / "a.png")
    write(tmp_path / "obj" / "a.txt", ROW)
    write(tmp_path / "classes.txt", "cat\ndog\n")
    index = load_annotations(tmp_path, tmp_path / "obj", format="yolo", report=DataReport())
    assert len(index.boxes[0]) == 1


def test_names_may_lie_with_the_labels_and_a_folder_may_hold_the_description(root):
    by_yaml = load(root)
    assert load_annotations(root, None, format="yolo", report=DataReport()).fingerprint() == by_yaml.fingerprint()
    of_val = FormatOptions(split="val")
    assert files(load_annotations(root, None, format="yolo", report=DataReport(), options=of_val)) == ["c.png"]
    write(root / "other.yaml", "names: [cat]\n")
    with pytest.raises(DataError, match=r"it has data\.yaml, other\.yaml; give one") as caught:
        load_annotations(root, None, format="yolo", report=DataReport())
    assert caught.value.code == "F1"
    write(root / "labels" / "classes.txt", "cat\ndog\n")
    with pytest.raises(DataError, match=r"it has labels/classes\.txt, data\.yaml; give one of these files"):
        load_annotations(root, None, format="yolo", report=DataReport())
    by_names = load_annotations(root / "labels" / "classes.txt", None, format="yolo", report=DataReport())
    assert files(by_names) == ["a.png", "b.png", "c.png"]
    (root / "data.yaml").unlink()  # without data.yaml, other.yaml is not read: it may be anything
    assert load_annotations(root, None, format="yolo", report=DataReport()).fingerprint() == by_names.fingerprint()
    for path in (root / "other.yaml", root / "labels" / "classes.txt"):
        path.unlink()
    with pytest.raises(DataError, match="it has none of these"):
        load_annotations(root, None, format="yolo", report=DataReport())


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("/content/pets/images/train", "/content/pets/images/val"),
        ("C:\\Users\\me\\pets\\images\\train", "C:\\Users\\me\\pets\\images\\val"),
        ("../pets/images/train/", "../pets/images/val/"),
        ("pets/images/train", "pets/images/val"),
        ("/x/train.txt", "/x/val.txt"),
    ],
)
def test_of_a_path_of_another_machine_the_end_that_exists_is_taken_and_counted(root, train, val):
    by_itself = load(root)
    write(root / "train.txt", "images/train/a.png\nimages/train/b.png\n")
    set_data(root, train=train, val=val)
    report = DataReport()
    index = load(root, report)
    assert index.fingerprint() == by_itself.fingerprint()
    assert report.counts() == {("F8", "noticed"): 1}
    assert "which does not exist" in report.first_records()[Finding("F8", "noticed")][0]
    assert load(root, images=root / "images").boxes.values.tolist() == by_itself.boxes.values.tolist()


def test_an_end_that_two_splits_share_is_refused(root):
    set_data(root, train="/content/train/images", val="/content/val/images")
    with pytest.raises(
        DataError, match=r"train is '/content/train/images'.*its end, .*, exists, but has the images of val"
    ) as caught:
        load(root)
    assert caught.value.code == "F1"
    set_data(root, train="/content/images", val="/content/images")  # the file itself gives both splits one folder
    assert files(load(root)) == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    "folder", ["data/images/train/", "/home/me/darknet/data/images/train/", "images\\train\\", "D:\\x\\images\\train\\"]
)
def test_images_of_a_list_may_be_of_another_machine(root, folder):
    write(root / "train.txt", f"{folder}a.png\n{folder}b.png\n")
    set_data(root, train="train.txt")
    report = DataReport()
    assert files(load(root, report)) == ["a.png", "b.png"]
    assert report.counts() == ({} if folder == "images\\train\\" else {("F8", "noticed"): 1})


def test_a_missing_image_does_not_decide_where_the_others_of_its_folder_are(root):
    (root / "x" / "train").mkdir(parents=True)
    save(root / "x" / "train" / "gone.png")
    write(root / "train.txt", "x/y/train/gone.png\nx/y/train/none.png\nx/y/train/a.png\nx/y/train/b.png\n")
    set_data(root / "images", train="../train.txt", val=None)
    report = DataReport()
    index = load_annotations(root / "images" / "data.yaml", None, format="yolo", report=report)
    assert files(index) == ["a.png", "b.png"]
    assert report.num_skipped("F8") == 2


def test_no_image_of_a_list_is_there(root):
    write(root / "train.txt", "/gone/a.png\n/gone/b.png\n")
    set_data(root, train="train.txt")
    with pytest.raises(DataError, match=r"none of 2 images found; the first is /gone/a\.png") as caught:
        load(root)
    assert caught.value.code == "F8"


@pytest.mark.parametrize("line", ["/", "images/train/", "C:\\"])
def test_a_line_of_a_list_that_names_no_image(root, line):
    write(root / "train.txt", f"images/train/a.png\n{line}\n")
    set_data(root, train="train.txt")
    with pytest.raises(DataError, match=r"train\.txt: line 2 is .*, which is not an image name") as caught:
        load(root)
    assert caught.value.code == "F1"


def test_a_name_that_no_system_takes_is_a_missing_image(root):
    write(root / "train.txt", f"images/train/a.png\nimages/train/{'x' * 5000}.png\n")
    set_data(root, train="train.txt")
    report = DataReport()
    assert files(load(root, report)) == ["a.png"]
    assert list(report.counts().values()) == [1]


@pytest.mark.parametrize(
    ("changes", "lists"),
    [
        ({"train": "images/train", "val": "../gone/images"}, {}),  # the folder found for val contains train's
        ({"train": ["/content/train/images"], "val": "/content/val/images"}, {}),
        ({"minitrain": "images", "train": None, "val": "/content/val/images"}, {}),
        ({"train": "t.txt", "val": "v.txt"}, {"t.txt": "/c/train/a.png", "v.txt": "/c/val/a.png"}),
        ({"train": "/s/t.txt", "val": "/s/v.txt"}, {"t.txt": "/c/train/a.png", "v.txt": "/c/val/a.png"}),
        ({"path": "/s", "train": "t.txt", "val": "v.txt"}, {"t.txt": "/c/train/a.png", "v.txt": "/c/val/a.png"}),
    ],
)
def test_an_evaluation_never_takes_the_images_of_another_split_for_its_own(root, changes, lists):
    for name, line in lists.items():
        write(root / name, line)
        save(root / "a.png")
        write(root / "a.txt", ROW)
    set_data(root, **changes)
    with pytest.raises(DataError, match=r"correct the paths") as caught:
        load(root, with_truth=True)
    assert caught.value.code == "F1"


def test_a_set_by_a_relative_path_whose_folder_is_another_machines(root, monkeypatch):
    """A set is found if `path` names another machine's folder and the set is given by a relative path, as the usual
    data root `./data` is."""
    by_itself = load(root)
    set_data(root, path="/Users/me/pets", train="images/train", val="images/val")
    monkeypatch.chdir(root.parent)
    for images in (None, Path("mine/images")):
        report = DataReport()
        index = load_annotations(
            Path(root.name) / "data.yaml", images, format="yolo", report=report, options=FormatOptions()
        )
        assert index.boxes.values.tolist() == by_itself.boxes.values.tolist()
        assert all(index.encoded(image).is_file() for image in range(len(index)))
    set_data(root, path="../datasets/images", train="train")  # `path` and `train` together end in images/train
    assert files(load(root)) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("changes", "lists"),
    [
        ({"train": "images", "val": "./images/"}, {}),  # the same folder, spelled in two ways
        ({"train": "images", "val": "images/val"}, {}),  # one inside the other, as the file says
        ({"train": "images/train", "val": "images/val", "author": "images", "description": "."}, {}),
        ({"train": "images/train", "val": "images/val", "test": "bad.txt"}, {"bad.txt": "\udcff"}),
        ({"train": "t.txt", "val": "v.txt"}, {"t.txt": "/c/images/train/a.png", "v.txt": "images/val/c.png"}),
        ({"train": "t.txt", "val": "v.txt"}, {"t.txt": "/c/all/a.png", "v.txt": "all/b.png"}),  # no image is in both
    ],
)
def test_what_the_file_itself_says_of_two_splits_is_taken(root, changes, lists):
    for name in ("a", "b"):
        save(root / "all" / f"{name}.png")
        write(root / "all" / f"{name}.txt", ROW)
    for name, line in lists.items():
        (root / name).write_bytes(line.encode(errors="surrogateescape"))
    set_data(root, path="/another/machine", **changes)
    for with_truth in (False, True):
        assert len(load(root, with_truth=with_truth))


def test_a_list_of_many_folders_is_found_in_their_number(root):
    for number in range(300):
        save(root / "images" / "many" / str(number) / "x.png", (4, 4))
    lines = [f"/content/images/many/{number}/x.png" for number in range(300)]
    write(root / "images" / "many" / "0" / "x.txt", ROW)
    write(root / "t.txt", "\n".join(lines))
    write(root / "v.txt", "\n".join(line.replace("x.png", "y.png") for line in lines))
    set_data(root, train="t.txt", val="v.txt")
    report = DataReport()
    assert len(load(root, report)) == 300
    assert report.counts()[Finding("F8", "noticed")] == 300


def test_roboflows_paths_with_one_split_alone(tmp_path):
    """With data.yaml inside `train` and only that split there, the end of ../valid/images must not match train's own
    image folder."""
    save(tmp_path / "train" / "images" / "a.png")
    write(tmp_path / "train" / "labels" / "a.txt", ROW)
    set_data(tmp_path / "train", train="../train/images", val="../valid/images")
    assert files(load(tmp_path / "train")) == ["a.png"]
    with pytest.raises(DataError, match="has the images of train"):
        load(tmp_path / "train", with_truth=True)


def test_images_of_a_list_that_are_nowhere_keep_their_names(root):
    write(root / "train.txt", "images/train/a.png\n/gone/x.png\n")
    set_data(root, train="train.txt")
    report = DataReport()
    assert files(load(root, report)) == ["a.png"]
    assert report.first_records()[Finding("F8", "skipped")] == ["/gone/x.png: file is missing"]


def test_darknets_data_file(root):
    """Darknet's data file is read as CVAT exports it: paths start in `data/`, which is the folder itself."""
    write(root / "obj.names", "cat \ndog\n")
    write(root / "train.txt", "data/images/train/a.png\ndata/images/train/b.png\n")
    write(root / "valid.txt", "data/images/val/c.png\n")
    lines = (
        "# made by a tool",
        "classes = 2",
        "train = data/train.txt",
        "valid=data/valid.txt",
        "names = data/obj.names",
    )
    write(root / "obj.data", "\n".join((*lines, "backup = backup/")))
    report = DataReport()
    index = load_annotations(root / "obj.data", None, format="yolo", report=report)
    assert index.fingerprint() == load(root).fingerprint()
    assert report.counts() == {("F8", "noticed"): 2}
    judged = load_annotations(root / "obj.data", None, format="yolo", report=DataReport(), with_truth=True)
    assert files(judged) == ["c.png"]
    write(root / "obj.data", "\n".join((*lines, "backup = backup/")).replace("= 2", "= 80"))
    with pytest.raises(DataError, match="classes is 80, but names has 2"):
        load_annotations(root / "obj.data", None, format="yolo", report=DataReport())
    write(root / "obj.data", "train = data/train.txt\n")
    with pytest.raises(DataError, match="the line `names = FILE`") as caught:
        load_annotations(root / "obj.data", None, format="yolo", report=DataReport())
    assert caught.value.code == "F1"


def test_polygons_give_their_bounding_box(root):
    write(
        root / "labels" / "train" / "a.txt",
        "0 0.1 0.5 0.3 0.25 0.2 0.75\n1.0 0.1 0.1 0.6 0.1 0.6 0.35 0.1 0.35\n",
    )
    index = load(root)
    np.testing.assert_allclose(index.boxes[0], [[6, 10, 18, 30], [6, 4, 36, 14]], rtol=1e-6)
    assert index.classes[0].tolist() == [0, 1]
    write(root / "labels" / "train" / "a.txt", "0 0.1 0.2 0.6 0.25 0.15 0.8 0.1 0.7\n")  # most points at the left
    np.testing.assert_allclose(load(root).boxes[0], [[6, 8, 36, 32]], rtol=1e-6)


def test_ids_of_names_may_have_gaps_and_any_order(root):
    set_data(root, names={7: "dog", 3: "cat"})
    write(root / "labels" / "train" / "a.txt", "7 0.5 0.25 0.1 0.2\n3 0.5 0.5 0.2 0.2\n")
    index = load(root)
    assert [(category.id, category.name) for category in index.categories] == [(3, "cat"), (7, "dog")]
    assert index.classes[0].tolist() == [1, 0]


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_the_loader_sees(root, format, orientation):
    for path in (root / "images" / "train").iterdir():
        path.unlink()
    save(root / "images" / "train" / f"a.{format}", SIZE, orientation)
    index = load(root)
    assert index.image_sizes.tolist() == [list(SIZE if orientation < 5 else SIZE[::-1])]
    report = DataReport()
    check_images(index, report)
    assert (report.counts(), report.num_used()) == ({}, 1)


def test_boxes_at_the_border_are_not_outside_by_the_rounding_of_six_decimals(root):
    save(root / "images" / "train" / "a.png", (3001, 4003))
    write(root / "labels" / "train" / "a.txt", "0 0.833334 0.500000 0.333333 1.000000\n")
    report = DataReport()
    load(root, report)
    assert report.counts() == {}


@pytest.mark.parametrize(("damage", "code"), [("missing", "F8"), ("text", "F9"), ("ppm", "F9")])
def test_an_image_that_cannot_be_read(root, damage, code):
    path = root / "images" / "train" / "a.png"
    path.unlink()
    write(root / "list.txt", "images/train/a.png\nimages/train/b.png\n")
    set_data(root, train="list.txt")
    write(root / "labels" / "train" / "b.txt", ROW)
    if damage == "text":
        path.write_text("no image")
    if damage == "ppm":  # in a folder of images, it is not skipped silently
        Image.new("RGB", (9, 9)).save(root / "images" / "train" / "a.ppm")
        set_data(root)
    report = DataReport()
    index = load(root, report)
    assert report.counts() == {(code, "skipped"): 1}
    assert (files(index), index.image_ids.tolist(), len(index.boxes[0])) == (["b.png"], [1], 1)
    with pytest.raises(ImageError, match="a\\.") as caught:
        load(root, with_truth=True, split="train")
    assert caught.value.code == code


def test_too_many_unreadable_images_stop_but_scattered_ones_are_no_row(root):
    for number in range(12):
        write(root / "images" / "train" / f"{number}.png", "x")
    with pytest.raises(DataError, match="12 of 14 skipped") as caught:
        load(root)
    assert caught.value.code == "F9"
    report = DataReport(stops=False)
    load(root, report)
    assert report.counts() == {("F9", "skipped"): 12}


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "F3", "1 object of classes without a name: .*a.txt: line 2 has class 2"),
        ("-1 0.5 0.5 0.1 0.1", "F3", "has class -1"),
        ("dog 0.5 0.5 0.1 0.1", "F6", "line 2: the class is 'dog'"),
        ("0.5 0.5 0.5 0.1 0.1", "F6", "line 2: the class is '0.5'"),
        ("0 0.5 nan 0.1 0.1", "F6", "line 2: 'nan' is not a finite number"),
        ("0 0.5 0.5 0.1 inf", "F6", "line 2: 'inf'"),
        ("0 0.5 0.5 0.1 0,1", "F6", "line 2: '0,1'"),
        ("0 0.5 0.5 0.1", "F6", "line 2: 3 numbers after the class"),
        ("0", "F6", "line 2: 0 numbers after the class"),
        ("0 0.5 0.5 0.1 0.1 0.9", "F6", "line 2: 5 numbers after the class.*confidence"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.1 0.3", "F6", "line 2: 7 numbers after the class"),
        ("0 30 20 10 10", "F6", "line 2: .*must be fractions"),
    ],
)
def test_faults_of_a_row_name_the_file_and_the_line(root, row, code, message):
    write(root / "labels" / "train" / "a.txt", ROW + row + "\n")
    with pytest.raises(DataError, match=message) as caught:
        load(root)
    assert caught.value.code == code
    assert "labels/train/a.txt: line 2" in str(caught.value)


def test_a_label_file_that_is_not_utf8(root):
    (root / "labels" / "train" / "a.txt").write_bytes(b"1 0.5 \xff 0.1 0.1\n")
    with pytest.raises(DataError, match=r"a\.txt: invalid UTF-8 at byte 6 of") as caught:
        load(root)
    assert caught.value.code == "F1"


def test_a_box_of_a_pixel_is_kept_in_six_decimals_of_any_image_size(root):
    """One pixel of 60 x 40 is 0.016667 x 0.025 there, and one of 640 x 480 is 0.001562 x 0.002083, a little less."""
    for height, width in ((40, 60), (480, 640)):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(root / "images" / "train" / "a.png")
        write(root / "labels" / "train" / "a.txt", f"0 0.5 0.5 {1 / width:.6f} {1 / height:.6f}")
        report = DataReport()
        np.testing.assert_allclose(load(root, report).boxes[0][:, 2:], [[width / 2 + 0.5, height / 2 + 0.5]], atol=1e-3)
        assert report.counts() == {}


def test_small_and_outside_boxes_are_counted_by_file_and_line(root):
    rows = ["0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.01 0.2", "0 0.95 0.5 0.2 0.2", "1 1.2 0.5 0.2 0.2"]
    write(root / "labels" / "train" / "a.txt", "\n".join(rows))
    report = DataReport()
    index = load(root, report)
    assert report.counts() == {("F4", "skipped"): 1, ("F5", "skipped"): 1, ("F5", "repaired"): 1}
    assert "a.txt: line 2: a side of" in report.first_records()[Finding("F4", "skipped")][0]
    assert "a.txt: line 4: " in report.first_records()[Finding("F5", "skipped")][0]
    np.testing.assert_allclose(index.boxes[0], [[24, 16, 36, 24], [51, 16, 60, 24]], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"train": None}, "F1", "the key 'train' is missing; the file has val"),
        ({"train": "images/none"}, "F1", "'images/none', but .*images/none is not a folder"),
        ({"train": "none.txt"}, "F1", r"data\.yaml: train is 'none\.txt', but .*none\.txt is not a list of images"),
        ({"train": " "}, "F1", r"train is ' ', but"),
        ({"train": 3}, "F1", "train is 3, not the path"),
        ({"train": ["images/train", "images/train"]}, "F2", "images 0 and 2 are both .*a.png"),
        ({"train": "labels"}, "F1", "no image in"),
        ({"path": 3}, "F1", "path is 3, not a string"),
        ({"names": None}, "F1", "names is None"),
        ({"names": {}}, "F1", "names is {}"),
        ({"names": {"0": "cat"}}, "F1", "names has the id '0'"),
        ({"names": {0: "cat", 1: False}}, "F1", "name 1 is False, not a string; write it in quotes"),
        ({"nc": 3}, "F1", "nc is 3, but names has 2"),
        ({"kpt_shape": [17, 3]}, "F1", "has kpt_shape, so its labels are poses"),
    ],
)
def test_faults_of_data_yaml_are_named(root, changes, code, message):
    set_data(root, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load(root)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: &a x\nval: *a\nnames: [cat]\n", "aliases"),
        ("train: !!python/object/apply:os.system ['true']\n", "not plain YAML"),
        ("names: {0: cat, 0: dog}\ntrain: images\n", "the key 0 occurs twice"),
        ("- 1\n", "expected a mapping"),
        ("names: [cat\n", "not plain YAML"),
    ],
)
def test_yaml_that_is_no_plain_mapping(root, text, message):
    write(root / "data.yaml", text)
    with pytest.raises(DataError, match=rf"data\.yaml: .*{message}") as caught:
        load(root)
    assert caught.value.code == "F1"


def test_labels_that_are_all_missing_are_a_mistake_of_layout(root):
    (root / "labels").rename(root / "label")
    with pytest.raises(DataError, match=r"none of 2 images has a label file.*train/a\.png") as caught:
        load(root)
    assert caught.value.code == "F1"


def test_images_without_a_label_file_are_counted_and_those_with_an_empty_one_are_not(root, capsys):
    (root / "labels" / "train" / "b.txt").unlink()
    for name in ("c", "d", "e"):
        save(root / "images" / "train" / f"{name}.png")
    write(root / "labels" / "train" / "d.txt", "")
    (root / "images" / "train" / "e.png").write_bytes(b"no image")
    report = DataReport()
    load(root, report)
    without = "2 of 4 images have no label file and count as without objects"
    where = f"{root / 'data.yaml'}: {without}; the first: {root / 'images/train/b.png'}"
    assert report.first_records()[Finding("F1", "noticed")] == [where]
    assert report.counts() == {("F9", "skipped"): 1, ("F1", "noticed"): 1}
    assert capsys.readouterr().err == f"warning[F1]: {where}\n"


def test_label_files_of_no_image_and_of_two_are_counted(root):
    labels = root / "labels" / "train"
    write(labels / "gone.txt", ROW + ROW)
    write(labels / "README.txt", "Made by hand.\n")
    write(labels / "empty.txt", "\n")
    save(root / "images" / "train" / "a.jpg")
    report = DataReport()
    index = load(root, report)
    assert [len(index.boxes[image]) for image in range(3)] == [1, 1, 0]
    assert report.counts() == {("F2", "noticed"): 1, ("F8", "noticed"): 1}
    first = report.first_records()
    assert re.search(r"a\.txt: is the label file of .*a\.jpg and of .*a\.png;", first[Finding("F2", "noticed")][0])
    gone = first[Finding("F8", "noticed")][0]
    assert re.search(r"gone\.txt: its image is not in .*images/train; 2 objects", gone)


def test_a_label_file_whose_image_is_there_and_not_listed_is_no_finding(root):
    write(root / "labels" / "train" / "b.txt", ROW)
    write(root / "list.txt", "images/train/a.png\n")
    set_data(root, train="list.txt")
    report = DataReport()
    assert len(load(root, report)) == 1
    assert report.counts() == {}


def test_hidden_folders_and_those_of_systems_hold_no_images(root):
    for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        save(root / "images" / "train" / folder / "a.png")
    assert files(load(root)) == ["a.png", "b.png"]


def test_labels_of_a_folder_whose_images_are_all_missing_are_counted(root):
    set_data(root, train="images")
    write(root / "labels" / "val" / "c.txt", ROW)
    write(root / "labels" / "extra" / "d.txt", ROW + ROW)
    report = DataReport()
    load(root, report)
    assert report.counts() == {("F8", "noticed"): 1}
    where = f"{root / 'labels/extra/d.txt'}: its image is not in {root / 'images/extra'}"
    assert report.first_records()[Finding("F8", "noticed")] == [f"{where}; 2 objects left out"]
    report = DataReport()
    set_data(root)
    load(root, report)  # the training set is complete
    assert not report.counts()


@pytest.mark.parametrize("images", [[], ["e.png"], ["e.png", "d.detections.png"]])
def test_labels_in_a_folder_of_other_images_are_counted(root, images):
    """No image of the folder has a label file, so that the folder is none of a listed label file."""
    set_data(root, train="images")
    (root / "images" / "extra").mkdir()
    for name in images:
        save(root / "images" / "extra" / name)
    write(root / "labels" / "extra" / "d.txt", ROW + ROW)
    write(root / "labels" / "extra" / "d.detections.txt", ROW)
    report = DataReport()
    load(root, report)
    orphans = report.first_records()[Finding("F8", "noticed")]
    where = f"{root / 'labels/extra/d.txt'}: its image is not in {root / 'images/extra'}"
    assert f"{where}; 2 objects left out" in orphans
    assert len(orphans) == 2 - ("d.detections.png" in images)


def test_boxes_of_images_that_cannot_be_read_are_counted(root):
    (root / "images" / "train" / "a.png").write_bytes(b"no image")
    for number in range(600):
        save(root / "images" / "train" / f"{number}.png", size=(2, 2))
    report = DataReport()
    load(root, report)
    assert (report.num_used("box"), report.num_seen("box")) == (0, 1)


def test_objects_that_are_there_twice_and_names_that_are_nearly_the_same_are_noticed(root):
    set_data(root, names=["Dog", "dog"])
    write(root / "labels" / "train" / "a.txt", ROW + ROW)
    report = DataReport()
    load(root, report)
    assert report.counts() == {("F2", "noticed"): 2}


def test_characters_of_names_that_are_written_in_halves(root):
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text.replace("- cat", '- "\\ud83d\\ude00 face"'))
    assert load(root).names[0] == "\N{GRINNING FACE} face"
    (root / "data.yaml").write_text(text.replace("- cat", '- "\\ud83d face"'))
    with pytest.raises(DataError, match=r"data\.yaml: name 0: .* has a lone surrogate"):
        load(root)
