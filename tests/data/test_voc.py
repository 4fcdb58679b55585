"""Pascal VOC: corners, sizes, file names, vocabularies and faults."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_layouts import voc_object, voc_xml

from ovd.data.annotations import load_annotations, load_truth
from ovd.data.formats.options import FormatOptions
from ovd.data.images.image_file import ImageError
from ovd.data.index import AnnotationIndex
from ovd.data.report import DataError, DataReport, Finding

SIZE = (40, 60)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Folder of two images with XML files, in VOCdevkit's layout."""
    for name, size in (("a", SIZE), ("b", (50, 30))):
        write(tmp_path, name, voc_xml(f"{name}.jpg", size, [voc_object("cat", [1, 2, 10, 20])]))
        save(tmp_path / "JPEGImages" / f"{name}.jpg", size)
    return tmp_path


def write(folder: Path, name: str, xml: str | bytes) -> None:
    path = folder / "Annotations" / f"{name}.xml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(xml if isinstance(xml, bytes) else xml.encode())


def save(path: Path, size: tuple[int, int], orientation: int = 1) -> None:
    path.parent.mkdir(exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path, exif=exif)


def load(
    folder: Path, options: FormatOptions | None = None, report: DataReport | None = None, **more
) -> AnnotationIndex:
    images = folder / "JPEGImages"
    return load_annotations(
        folder / "Annotations", images, format="voc", report=report or DataReport(),
        options=options or FormatOptions(), **more,
    )  # fmt: skip


def test_corners_are_inclusive_pixels_from_1_unless_zero_based(folder):
    box = "<bndbox><ymax>20</ymax><xmin>1</xmin><ymin>5.5</ymin><xmax>60</xmax></bndbox>"
    write(folder, "a", voc_xml("a.jpg", SIZE, [f"<object><name> cat </name>{box}</object>"]))
    assert load(folder).boxes[0].tolist() == [[0, 4.5, 60, 20]]
    assert load(folder, FormatOptions(zero_based=True)).boxes[0].tolist() == [[1, 5.5, 60, 20]]


def test_a_part_of_an_object_is_no_object(folder):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    whole = voc_object("person", [3, 4, 20, 30]).replace("<pose>", f"{part}<pose>")
    write(folder, "a", voc_xml("a.jpg", SIZE, [whole]))
    index = load(folder)
    assert index.boxes[0].tolist() == [[3, 4, 23, 34]]
    assert [category.name for category in index.categories] == ["cat", "person"]


def test_a_list_of_names_selects_and_orders(folder):
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("b\r\n\r\na\r\n")
    index = load_annotations(lists / "val.txt", folder / "JPEGImages", format="voc", report=DataReport())
    assert index.image_files == ("b.jpg", "a.jpg")
    assert index.image_ids.tolist() == [0, 1]
    (lists / "val.txt").write_text("b\nc\n")
    with pytest.raises(DataError, match=r"val\.txt: line 2 is 'c', but .*Annotations/c\.xml does not exist") as caught:
        load_annotations(lists / "val.txt", None, format="voc", report=DataReport())
    assert caught.value.code == "F1"


def test_a_vocabulary_from_a_file(folder):
    names = folder / "names.txt"
    names.write_text("dog\ncat\n")
    index = load(folder, FormatOptions(class_names=names))
    assert [(category.id, category.name, category.image_count) for category in index.categories] == [
        (0, "dog", 0), (1, "cat", 2),
    ]  # fmt: skip
    assert index.classes.values.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("dog\n", "F3", r"names\.txt: 2 objects of classes that are not in this file: .*a\.xml: object 1 is 'cat'"),
        ("cat\ndog\ncat\n", "F2", r"names\.txt: class names that occur twice: cat"),
        ("cat\n\ndog\n", "F1", r"names\.txt: a blank line"),
        ("\n", "F1", r"names\.txt: no class name"),
    ],
)
def test_faults_of_a_vocabulary_file(folder, text, code, message):
    names = folder / "names.txt"
    names.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load(folder, FormatOptions(class_names=names))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "size_xml", ["", "<size/>", "<size><width>0</width><height>0</height></size>", "<size><width>60</width></size>"]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_size_of_0_or_none_is_read_from_the_image(folder, size_xml, orientation):
    xml = voc_xml("a.jpg", SIZE, [voc_object("cat", [1, 2, 10, 20])])
    start, end = xml.index("<size>"), xml.index("<segmented>")
    write(folder, "a", xml[:start] + size_xml + xml[end:])
    save(folder / "JPEGImages" / "a.jpg", SIZE, orientation)
    shown = SIZE if orientation == 1 else SIZE[::-1]
    assert load(folder).image_sizes.tolist() == [list(shown), [50, 30]]
    assert load(folder, with_truth=True).truth is not None
    assert len(load_truth(folder / "Annotations", format="voc").boxes_xywh) == 2  # the truth needs no size
    with pytest.raises(DataError, match=r"a\.xml: no <size>") as caught:
        load_annotations(folder / "Annotations", None, format="voc", report=DataReport())
    assert caught.value.code == "F1"


def test_all_sizes_are_read_from_the_images_if_asked(folder):
    expected = load(folder)
    write(folder, "a", voc_xml("a.jpg", (1024, 1024), [voc_object("cat", [1, 2, 10, 20])]))
    report = DataReport()
    index = load(folder, FormatOptions(sizes_from_images=True), report)
    assert index.fingerprint() == expected.fingerprint()
    assert report.counts() == {}
    assert load_annotations(
        folder / "Annotations", None, format="voc", report=report, options=FormatOptions(sizes_from_images=True)
    ).image_sizes[0].tolist() == [1024, 1024]  # without images, the recorded size is kept


@pytest.mark.parametrize(("damage", "code"), [("missing", "F8"), ("text", "F9")])
def test_an_image_without_size_that_cannot_be_read(folder, damage, code):
    xml = voc_xml("a.jpg", (0, 0), [voc_object("cat", [1, 2, 10, 20]), voc_object("dog", [1, 2, 10, 20])])
    write(folder, "a", xml)
    path = folder / "JPEGImages" / "a.jpg"
    path.unlink()
    if damage == "text":
        path.write_text("no image")
    report = DataReport()
    index = load(folder, report=report)
    assert report.counts() == {(code, "skipped"): 1, ("F12", "repaired"): 1}
    assert "1 image has no height and width" in report.first_records()[Finding("F12", "repaired")][0]
    assert (index.image_ids.tolist(), index.image_files, len(index.boxes.values)) == ([1], ("b.jpg",), 1)
    assert [category.name for category in index.categories] == ["cat", "dog"]  # skipped files count for ids, too
    with pytest.raises(ImageError, match=r"a\.jpg") as caught:
        load(folder, with_truth=True)
    assert caught.value.code == code


def test_five_that_cannot_be_read_are_few_of_many_images_though_many_of_those_without_a_size(folder):
    for number in range(505):
        save_size = (0, 0) if number < 5 else SIZE
        write(folder, f"c{number}", voc_xml(f"c{number}.jpg", save_size, []))
        (folder / "JPEGImages" / f"c{number}.jpg").write_bytes(b"no image")
    report = DataReport()
    assert len(load(folder, report=report)) == 502
    assert report.counts() == {("F9", "skipped"): 5, ("F12", "repaired"): 1}


@pytest.mark.parametrize(
    ("file_name", "saved", "expected"),
    [
        ("<filename>b.png</filename>", "b.png", "b.png"),
        ("<filename>n01_5</filename>", "n01_5.JPG", "n01_5.JPG"),
        ("<filename></filename>", "c.webp", "c.webp"),
        ("", "c.png", "c.png"),
        ("", "other.png", "c.jpg"),  # missing, which loading will report
    ],
)
def test_the_image_is_named_by_the_file_or_found_by_the_name_of_the_xml(folder, file_name, saved, expected):
    xml = voc_xml("?", SIZE, []).replace("<filename>?</filename>", file_name)
    write(folder, "c", xml)
    save(folder / "JPEGImages" / saved, SIZE)
    assert load(folder).image_files == ("a.jpg", "b.jpg", expected)


def test_the_image_of_the_xml_files_own_name_goes_before_an_outdated_filename(folder):
    """An image named like the XML file is preferred, as in torchvision and detectron2: renamed files keep their old
    <filename>."""
    for name, file_name in (("c", "a.jpg"), ("d", r"C:\photos\gone.jpg"), ("e", "E.PNG")):
        write(folder, name, voc_xml(file_name, SIZE, [voc_object("cat", [1, 2, 10, 20])]))
        save(folder / "JPEGImages" / f"{name}.jpeg", SIZE)
    report = DataReport()
    index = load(folder, report=report)
    assert index.image_files == ("a.jpg", "b.jpg", "c.jpeg", "d.jpeg", "e.jpeg")
    assert report.counts() == {("F8", "noticed"): 3}
    assert (
        "c.xml: <filename> is 'a.jpg', but c.jpeg, which has the name of the XML file, is used"
        in (report.first_records()[Finding("F8", "noticed")][0])
    )


def test_the_same_image_with_and_without_the_folder_of_images(folder):
    """The same images are named with and without the image folder; without it, as when a results file is evaluated,
    only the names of the XML files are known."""
    for name in ("c", "d"):
        write(folder, name, voc_xml("old.jpg", SIZE, [voc_object("cat", [1, 2, 10, 20])]))
        save(folder / "JPEGImages" / "sub" / f"{name}.jpg", SIZE)
    truth = load_truth(folder / "Annotations", format="voc")
    assert len(truth.boxes_xywh) == 4
    by_name = load(folder, FormatOptions(by_base_name=True))
    assert by_name.image_files == ("a.jpg", "b.jpg", "sub/c.jpg", "sub/d.jpg")
    without = load_annotations(folder / "Annotations", None, format="voc", report=DataReport())
    assert without.image_files == ("a.jpg", "b.jpg", "c.jpg", "d.jpg")


def test_a_filename_that_leads_into_a_folder_goes_before_the_xml_files_own_name(folder):
    write(folder, "a", voc_xml("sub/x.jpg", SIZE, []))
    save(folder / "JPEGImages" / "sub" / "x.jpg", SIZE)
    assert load(folder).image_files == ("sub/x.jpg", "b.jpg")
    (folder / "JPEGImages" / "sub" / "x.jpg").unlink()
    assert load(folder).image_files == ("a.jpg", "b.jpg")


def test_two_images_of_a_name_are_told_apart_by_the_filename(folder):
    save(folder / "JPEGImages" / "a.png", SIZE)
    for file_name in ("a.jpg", "images/a.jpg", "C:\\x\\a.jpg"):
        write(folder, "a", voc_xml(file_name, SIZE, []))
        assert load(folder).image_files == ("a.jpg", "b.jpg")
    write(folder, "a", voc_xml("a", SIZE, []))
    with pytest.raises(DataError, match=r"a\.xml: the image may be a\.jpg or a\.png") as caught:
        load(folder)
    assert caught.value.code == "F2"


@pytest.mark.parametrize("name", ["x\\c", " c"])
def test_a_name_with_a_backslash_or_a_space_before_it_is_the_images_own(folder, name):
    """Linux allows backslashes in names, and archives made on Windows leave such files: they are no folders."""
    (folder / "Annotations" / "a.xml").unlink()
    save(folder / "JPEGImages" / f"{name}.jpg", SIZE)
    write(folder, name, voc_xml(f"{name}.jpg", SIZE, []))
    report = DataReport()
    assert sorted(load(folder, report=report).image_files) == sorted(["b.jpg", f"{name}.jpg"])
    assert report.counts() == {}
    save(folder / "JPEGImages" / f"{name}.png", SIZE)
    assert f"{name}.jpg" in load(folder).image_files
    (folder / "JPEGImages" / f"{name}.png").unlink()
    write(folder, name, voc_xml("y\\d.jpg", SIZE, []))
    load(folder, report=report)
    assert report.counts() == {Finding("F8", "noticed"): 1}


@pytest.mark.parametrize("are_images_nested", [True, False])
def test_folders_of_xml_files_are_read_with_all_below_them(folder, are_images_nested):
    for part in ("1", "2"):
        (folder / "Annotations" / part).mkdir()
        write(folder, f"{part}/c{part}", voc_xml(f"c{part}.jpg", SIZE, [voc_object("dog", [1, 2, 10, 20])]))
        save(folder / "JPEGImages" / (part if are_images_nested else "") / f"c{part}.jpg", SIZE)
    (folder / "Annotations" / ".idea").mkdir()
    (folder / "Annotations" / ".idea" / "workspace.xml").write_text("<project/>")
    nested = ("1/c1.jpg", "2/c2.jpg") if are_images_nested else ("c1.jpg", "c2.jpg")
    assert load(folder).image_files == (*nested, "a.jpg", "b.jpg")


def load_list(folder: Path, text: str, report: DataReport | None = None) -> AnnotationIndex:
    path = folder / "ImageSets" / "Main" / "train.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return load_annotations(path, folder / "JPEGImages", format="voc", report=report or DataReport())


@pytest.mark.parametrize("text", ["b\ra\r", "b\r\na\r\n", "b.jpg\na.jpg", "b.xml\na.xml\n"])
def test_lists_of_names_as_tools_write_them(folder, text):
    assert load_list(folder, text).image_files == ("b.jpg", "a.jpg")


@pytest.mark.parametrize("name", ["[1]", "{1}"])
def test_a_list_that_begins_with_a_bracket_is_no_json_if_it_names_a_file(folder, name):
    (folder / "Annotations" / "a.xml").rename(folder / "Annotations" / f"{name}.xml")
    (folder / "JPEGImages" / "a.jpg").rename(folder / "JPEGImages" / f"{name}.jpg")
    assert load_list(folder, f"{name}\nb\n").image_files == (f"{name}.jpg", "b.jpg")


def test_a_list_beside_a_folder_spelled_without_the_capital(folder):
    (folder / "Annotations").rename(folder / "annotations")
    assert load_list(folder, "b\na\n").image_files == ("b.jpg", "a.jpg")


def test_a_name_that_is_listed_twice_is_taken_once_and_counted(folder):
    report = DataReport()
    assert load_list(folder, "b\na\nb\n", report).image_files == ("b.jpg", "a.jpg")
    assert report.counts() == {("F2", "repaired"): 1}
    assert "train.txt: line 3 repeats 'b' of line 1" in report.first_records()[Finding("F2", "repaired")][0]


@pytest.mark.parametrize("encoding", ["gb2312", "shift_jis", "iso-8859-1", "utf-16"])
def test_files_in_the_encoding_that_they_state(folder, encoding):
    name = "cafe" if encoding == "iso-8859-1" else "\u72ac"
    xml = voc_xml("a.jpg", SIZE, [voc_object(name, [1, 2, 10, 20])])
    write(folder, "a", f'<?xml version="1.0" encoding="{encoding}"?>{xml}'.encode(encoding))
    assert name in [category.name for category in load(folder).categories]


def test_a_file_in_another_encoding_than_it_states_is_named(folder):
    for encoding in ("gb2312", "klingon"):
        write(folder, "a", f'<?xml version="1.0" encoding="{encoding}"?><annotation>'.encode() + b"\xff\xff")
        with pytest.raises(
            DataError, match=rf"a\.xml: the content is not in the stated encoding, {encoding}"
        ) as caught:
            load(folder)
        assert caught.value.code == "F1"


def test_an_object_that_nobody_judged_difficult_is_none(folder):
    xml = voc_xml("a.jpg", SIZE, [voc_object("cat", [1, 2, 10, 20])])
    write(folder, "a", xml.replace("<difficult>0<", "<difficult>Unspecified<"))
    assert len(load(folder).crowd_boxes.values) == 0


def test_boxes_as_shares_of_the_image_are_named(folder):
    boxes = "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(
        ("xmin", "ymin", "xmax", "ymax"), (0.1, 0.2, 0.5, 0.75), strict=True))  # fmt: skip
    one = f"<object><name>cat</name><bndbox>{boxes}</bndbox></object>"
    for name in ("a", "b"):
        write(folder, name, voc_xml(f"{name}.jpg", SIZE, [one] * 3))
    with pytest.raises(DataError, match=r"Annotations: all coordinates are from 0 to 1") as caught:
        load(folder)
    assert caught.value.code == "F6"


def test_corners_at_0_are_noticed_once_where_pixels_count_from_1(folder):
    rows = [[0, 2, 10, 20], [3, 0, 10, 20], [3, 3, 10, 20], [1, 1, 12, 20]]
    corners = [dict(zip(("xmin", "ymin", "xmax", "ymax"), row, strict=True)) for row in rows]
    boxes = ["".join(f"<{name}>{value}</{name}>" for name, value in row.items()) for row in corners]
    objects = [f"<object><name>cat</name><bndbox>{box}</bndbox></object>" for box in boxes]
    write(folder, "a", voc_xml("a.jpg", SIZE, objects))
    report = DataReport()
    load(folder, report=report)
    assert report.counts() == {("F5", "noticed"): 1, ("F5", "repaired"): 2}
    assert "2 of 5 objects have corners at 0" in report.first_records()[Finding("F5", "noticed")][0]
    report = DataReport()
    load(folder, FormatOptions(zero_based=True), report)
    assert report.counts() == {}
    write(folder, "a", voc_xml("a.jpg", SIZE, [objects[0].replace("<xmin>0<", "<xmin>-1<")]))
    load(folder, FormatOptions(zero_based=True), report)
    assert report.counts() == {("F5", "repaired"): 1}  # no advice to set what is set already


OBJECT = voc_object("cat", [1, 2, 10, 20])
XML = voc_xml("c.jpg", SIZE, [OBJECT, OBJECT])
XMIN = "<xmin>2.000000</xmin>"


@pytest.mark.parametrize(
    ("xml", "code", "message"),
    [
        (XML[:-5], "F1", r"invalid XML at byte \d+ of \d+, line 1"),
        ("", "F1", "invalid XML at byte 0 of 0"),
        ("<html/>", "F1", "the root element is <html>, not <annotation>"),
        (XML.replace(OBJECT, f"<objects>{OBJECT}</objects>"), "F1", "an <object> is inside another element"),
        (XML.replace("<name>cat</name>", "<name> </name>"), "F1", "object 1: no <name>"),
        (XML.replace("<difficult>0<", "<difficult>maybe<"), "F1", "object 1: <difficult> is 'maybe'"),
        (XML.replace("<width>60<", "<width>sixty<"), "F1", "<width> of <size> is 'sixty'"),
        (XML.replace("<height>40<", "<height>-1<"), "F1", "<height> of <size> is '-1'"),
        (XML.replace(XMIN, ""), "F6", "object 1: <bndbox> has .*'xmin': None"),
        (XML.replace(XMIN, "<xmin>nan</xmin>"), "F6", "object 1: <bndbox> has .*'xmin': 'nan'"),
        (XML.replace(XMIN, "<xmin>1e400</xmin>"), "F6", "object 1"),
        (XML.replace(XMIN, "<xmin>1_0</xmin>"), "F6", "object 1"),
        (XML.replace("bndbox", "robndbox"), "F6", "object 1: <bndbox> has"),
        ('<!DOCTYPE a [<!ENTITY e "x">]>' + XML.replace("cat", "&e;"), "F1", "has a DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + XML.replace("cat", "&e;"), "F1", "has a DOCTYPE"),
        (XML.replace("cat", "&e;"), "F1", "invalid XML .*undefined entity"),
        (XML.replace("c.jpg", "a.jpg"), "F2", r"a\.xml and .*c\.xml are both of the image a\.jpg"),
    ],
)
def test_faults_name_the_file_and_the_object(folder, xml, code, message):
    write(folder, "c", xml)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert caught.value.code == code
    assert "c.xml" in str(caught.value)


def test_a_doctype_is_refused_in_any_encoding(folder):
    write(folder, "c", '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a><annotation/>'.encode("utf-16"))
    with pytest.raises(DataError, match="has a DOCTYPE"):
        load(folder)
    write(folder, "c", voc_xml("c.jpg", SIZE, [voc_object("Bär", [1, 2, 3, 4])]).encode("utf-16"))
    assert [category.name for category in load(folder).categories] == ["Bär", "cat"]


def test_a_file_of_gigabytes_is_refused_before_it_is_read(folder):
    with (folder / "Annotations" / "c.xml").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(DataError, match=r"c\.xml: the file has 2147483648 bytes, more than") as caught:
        load(folder)
    assert caught.value.code == "F1"


def test_an_ambiguous_image_is_refused(folder):
    write(folder, "c", voc_xml("", SIZE, []))
    for suffix in (".jpg", ".png"):
        save(folder / "JPEGImages" / f"c{suffix}", SIZE)
    with pytest.raises(DataError, match=r"may be c\.jpg or c\.png") as caught:
        load(folder)
    assert caught.value.code == "F2"


def test_a_folder_without_xml_and_a_missing_one(folder):
    for name in ("JPEGImages", "none"):
        with pytest.raises(DataError, match=name) as caught:
            load_annotations(folder / name, folder, format="voc", report=DataReport())
        assert caught.value.code == "F1"


def test_small_and_outside_boxes_are_counted_by_file_and_object(folder):
    boxes = ([1, 2, 10, 20], [5, 5, 0.5, 9], [50, 30, 30, 9], [70, 5, 10, 10])
    write(folder, "a", voc_xml("a.jpg", SIZE, [voc_object("cat", list(map(float, box))) for box in boxes]))
    report = DataReport()
    index = load(folder, report=report, with_truth=True)
    assert report.counts() == {("F4", "skipped"): 1, ("F5", "skipped"): 1, ("F5", "repaired"): 1}
    assert "a.xml: object 2: a side of" in report.first_records()[Finding("F4", "skipped")][0]
    assert "a.xml: object 4: " in report.first_records()[Finding("F5", "skipped")][0]
    np.testing.assert_allclose(index.boxes[0], [[1, 2, 11, 22], [50, 30, 60, 39]])
    assert index.truth is not None
    np.testing.assert_allclose(index.truth.boxes_xywh[:4], boxes)


def test_a_list_without_names_is_a_set_without_images(folder):
    names = folder / "ImageSets" / "Main" / "none.txt"
    names.parent.mkdir(parents=True, exist_ok=True)
    names.write_text("\n")
    assert len(load_annotations(names, folder / "JPEGImages", format="voc", report=DataReport())) == 0


def test_a_name_that_ends_like_an_annotation_file(folder):
    for name in ("x", "x.xml"):
        write(folder, name, voc_xml(f"{name}.jpg", (40, 60), [voc_object("cat", [1, 1, 9, 9])]))
    assert len(load_list(folder, "x\nx.xml\n")) == 2
    report = DataReport()
    assert len(load_list(folder, "x.xml\nx.xml.xml\n", report)) == 1
    assert report.counts()[Finding("F2", "repaired")] == 1


def test_objects_that_are_there_twice_are_noticed(folder):
    cat = voc_object("cat", [1, 1, 9, 9])
    write(folder, "a", voc_xml("a.jpg", (40, 60), [cat, cat]))
    report = DataReport()
    load(folder, report=report)
    assert report.counts()[Finding("F2", "noticed")] == 1
