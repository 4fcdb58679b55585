"""Detection in many pictures: each is written once under its own name, and an unreadable one does not stop the
others."""

import json
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovd.data.images.image_file import ImageError
from ovd.data.images.media import Picture
from ovd.data.images.video import VideoWriter
from ovd.jobs.detect import detect_in_sources
from ovd.jobs.detect_output import CocoFile, JsonLines, output_for
from ovd.jobs.picture_detections import PictureDetections
from ovd.jobs.picture_files import PictureFiles, targets
from ovd.structures import Detections

NAMES = ["dark thing", "light thing"]


def detect(picture: Picture) -> Detections:
    """Detect the smallest box around all pixels that are not black; its class tells whether they are lighter than
    128."""
    rows, columns = np.nonzero(picture.pixels.max(axis=2) > 60)
    if len(rows) == 0:
        return Detections.empty()
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    is_light = picture.pixels[rows, columns].mean() > 128
    return Detections(torch.tensor([box], dtype=torch.float32), torch.tensor([0.75]), torch.tensor([int(is_light)]))


def found_in(picture: Picture) -> PictureDetections:
    return PictureDetections(picture, detect(picture))


def scene(x: int, value: int = 220, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[10:22, x : x + 16] = value
    return pixels


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(scene(4)).save(folder / "a.png")
    Image.fromarray(scene(20, 100)).save(folder / "b.png")
    Image.fromarray(scene(30, size=(70, 50))).save(folder / "below" / "a.png")
    Image.fromarray(scene(0, 0)).save(folder / "nothing.png")
    return folder


def test_pictures_and_json_beside_each_image(photos):
    sources = [str(photos / name) for name in ("a.png", "b.png", "below/a.png", "nothing.png")]
    output = PictureFiles(sources, NAMES, None)
    report = detect_in_sources(sources, detect, output)
    assert report.num_used() == 4
    assert report.num_used("box") == 3
    assert output.written == [Path(source).with_suffix(".detections.jpg") for source in sources]
    found = [json.loads(path.with_suffix(".json").read_text())["detections"] for path in output.written]
    assert found[0] == [{"class": "light thing", "score": 0.75, "box_xyxy": [4.0, 10.0, 20.0, 22.0]}]
    assert found[1][0]["class"] == "dark thing"
    assert found[3] == []


def test_one_that_cannot_be_read_is_counted_and_the_others_go_on(photos):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:60])
    sources = [str(photos / name) for name in ("a.png", "broken.png", "gone.png", "b.png")]
    output = PictureFiles(sources, NAMES, None)
    report = detect_in_sources(sources, detect, output)
    assert report.num_used() == 2
    assert report.counts() == {("F8", "skipped"): 1, ("F9", "skipped"): 1}
    assert [path.name for path in output.written] == ["a.detections.jpg", "b.detections.jpg"]
    with pytest.raises(ImageError, match=r"broken\.png"):
        detect_in_sources(sources[1:2], detect, PictureFiles(sources[1:2], NAMES, None))


def test_of_files_that_are_not_written_nothing_is_said(photos):
    sources = [str(photos / "gone.png"), str(photos / "away.png")]
    output = PictureFiles(sources, NAMES, None)
    assert detect_in_sources(sources, detect, output).num_used() == 0
    assert output.describe_location() == ""


def test_no_file_is_written_twice(photos):
    Image.fromarray(scene(4)).save(photos / "a.jpg")
    sources = [str(photos / "a.png"), str(photos / "a.jpg"), str(photos / "b.png")]
    assert [path.name for path in targets(sources, None).values()] == ["a.png", "a.jpg", "b"]
    with pytest.raises(ValueError, match="would both be written to"):
        targets([*sources[:2], str(photos / "a.png.jpg")], photos)
    assert targets(["-"], None) == {"-": Path("stdin")}


def test_sources_of_one_name_in_several_folders_keep_their_folders(photos, tmp_path, monkeypatch):
    Image.fromarray(scene(4)).save(photos / "below" / "a.jpg")
    monkeypatch.chdir(photos)
    out = tmp_path / "out"
    alike = ["b.png", str(photos / "below" / "a.png"), "below/a.jpg", "a.png"]
    assert list(targets(alike, out).values()) == [out / "b", out / "below/a.png", out / "below/a.jpg", out / "a"]
    others = ["b.png", "below/a.png", "below/a.jpg"]  # suffixes tell these apart
    assert list(targets(others, out).values()) == [out / "b", out / "a.png", out / "a.jpg"]
    output = PictureFiles(alike, NAMES, out)
    detect_in_sources(alike, detect, output)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.jpg")) == [
        "a.detections.jpg", "b.detections.jpg", "below/a.jpg.detections.jpg", "below/a.png.detections.jpg"
    ]  # fmt: skip
    assert output.describe_location() == f" in 4 sources; see {out}"


def test_beside_pictures_that_lie_where_nothing_can_be_written(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != photos)
    sources = [str(photos / "a.png")]
    with pytest.raises(ValueError, match=f"{photos} cannot be written to; .* --output FOLDER"):
        output_for("pictures", None, sources, NAMES)
    output_for("pictures", tmp_path / "out", sources, NAMES)
    output_for("lines", None, sources, NAMES)


@pytest.mark.parametrize("name", ["boxes.json", "boxes.JSONL", "pic.png", "film.mp4"])
def test_a_folder_of_pictures_with_the_name_of_a_file_is_refused(name, photos, tmp_path):
    sources = [str(photos / "b.png")]
    with pytest.raises(ValueError, match=r"give a folder, or write one file with --write coco or --write lines"):
        output_for("pictures", tmp_path / name, sources, NAMES)
    assert not (tmp_path / name).exists()
    with pytest.raises(ValueError, match="into a folder, but this is the name of a file"):
        output_for("pictures", photos / "a.png", sources, NAMES)
    (tmp_path / name).mkdir()
    for folder in (tmp_path / name, tmp_path / "run.v2"):
        output = output_for("pictures", folder, sources, NAMES)
        detect_in_sources(sources, detect, output)
        assert (folder / "b.detections.jpg").is_file()


def test_one_file_in_cocos_form(photos, tmp_path):
    sources = [str(photos / "a.png"), str(photos / "below" / "a.png"), str(photos / "nothing.png")]
    detect_in_sources(sources, detect, CocoFile(tmp_path / "boxes.json", NAMES))
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert [(image["height"], image["width"]) for image in content["images"]] == [(40, 60), (70, 50), (40, 60)]
    assert [image["file_name"] for image in content["images"]] == sources
    boxes = [(row["image_id"], row["category_id"], row["bbox"], row["score"]) for row in content["annotations"]]
    assert boxes == [(1, 2, [4, 10, 16, 12], 0.75), (2, 2, [30, 10, 16, 12], 0.75)]
    assert [category["name"] for category in content["categories"]] == NAMES


def test_records_of_frames_and_of_several_boxes_in_cocos_form(tmp_path):
    boxes = torch.tensor([[1.0, 2.0, 11.0, 5.0], [3.0, 4.0, 8.0, 9.0]])
    found = Detections(boxes, torch.tensor([0.87654, 0.5]), torch.tensor([1, 0]))
    output = CocoFile(tmp_path / "boxes.json", NAMES)
    for frame in (0, 1):
        output.add(PictureDetections(Picture("film.mp4", scene(4), frame, 0.04 * frame), found, (7, 3)))
    output.close()
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "film.mp4", "height": 40, "width": 60, "frame": 0, "time_s": 0.0},
        {"id": 2, "file_name": "film.mp4", "height": 40, "width": 60, "frame": 1, "time_s": 0.04},
    ]
    assert content["categories"] == [{"id": 1, "name": "dark thing"}, {"id": 2, "name": "light thing"}]
    columns = ("id", "image_id", "category_id", "bbox", "score", "track_id")
    first, second = [2, [1, 2, 10, 3], 0.8765, 7], [1, [3, 4, 5, 5], 0.5, 3]
    assert [[row[column] for column in columns] for row in content["annotations"]] == [
        [1, 1, *first], [2, 1, *second], [3, 2, *first], [4, 2, *second],
    ]  # fmt: skip


@pytest.mark.parametrize("output", [CocoFile, JsonLines])
def test_where_a_file_goes_is_looked_at_before_the_first_picture(output, photos, tmp_path):
    output(tmp_path / "not" / "there" / "boxes.json", NAMES).close()
    assert (tmp_path / "not" / "there").is_dir()
    with pytest.raises(ValueError, match=r"photos is a folder; give a file"):
        output(photos, NAMES)
    with pytest.raises(ValueError, match=r"the folder of .* cannot be created"):
        output(photos / "a.png" / "boxes.json", NAMES)


def test_what_was_found_before_an_error_is_kept(photos, tmp_path, capsys):
    sources = [str(photos / "a.png"), str(photos / "b.png")]

    def detect_until_b(picture: Picture) -> Detections:
        if picture.source == sources[1]:
            raise KeyboardInterrupt
        return detect(picture)

    with pytest.raises(KeyboardInterrupt):
        detect_in_sources(sources, detect_until_b, CocoFile(tmp_path / "boxes.json", NAMES))
    before = (tmp_path / "boxes.json").read_text()
    assert len(json.loads(before)["annotations"]) == 1
    assert (
        f"the detections in 1 picture before the error are kept; see {tmp_path / 'boxes.json'}"
        in capsys.readouterr().err
    )
    with pytest.raises(ImageError, match="file is missing"):
        detect_in_sources([str(photos / "gone.png")], detect, CocoFile(tmp_path / "others.json", NAMES))
    assert not (tmp_path / "others.json").exists()


@pytest.mark.parametrize("output", [CocoFile, JsonLines])
def test_no_file_is_written_over(output, photos, tmp_path):
    before = (photos / "a.png").read_bytes()
    with pytest.raises(ValueError, match=r"a\.png already exists; delete it, or give another file with --output"):
        output(photos / "a.png", NAMES)
    assert (photos / "a.png").read_bytes() == before
    with pytest.raises(ImageError, match="file is missing"):
        detect_in_sources([str(photos / "gone.png")], detect, output(tmp_path / "new.json", NAMES))
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("output", [CocoFile, JsonLines])
def test_a_device_is_no_file_to_delete(output):
    with pytest.raises(ValueError, match=r"^--output /dev/null is not a file; leave it out"):
        output(Path("/dev/null"), NAMES)
    assert Path("/dev/null").is_char_device()


def test_a_folder_of_pictures_is_made_before_the_first_picture(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^--output .*file/out cannot be created \(Not a directory\)"):
        PictureFiles([str(photos / "a.png")], NAMES, tmp_path / "file" / "out")
    PictureFiles([str(photos / "a.png")], NAMES, tmp_path / "out")
    assert (tmp_path / "out").is_dir()


def test_frames_before_the_damage_of_the_only_video_are_kept(tmp_path, monkeypatch):
    def damaged(source: str) -> Iterator[Picture]:
        yield Picture(source, scene(4), 0, 0.0)
        raise ImageError("F9", f"{source}: cannot be read as a video")

    monkeypatch.setattr("ovd.jobs.detect.pictures_of", damaged)
    with pytest.raises(ImageError, match="cannot be read as a video"):
        detect_in_sources(["film"], detect, CocoFile(tmp_path / "boxes.json", NAMES))
    assert len(json.loads((tmp_path / "boxes.json").read_text())["images"]) == 1


def test_a_package_for_videos_is_asked_for_before_the_first_picture(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    sources = [str(photos / "a.png"), str(photos / "film.mp4")]
    with pytest.raises(ValueError, match="this needs the package av"):
        detect_in_sources(sources, detect, PictureFiles(sources, NAMES, tmp_path))
    assert not list(tmp_path.glob("*.png"))


def test_lines_of_json_come_at_once(photos, capsys):
    output = JsonLines(None, NAMES)
    seen = []

    def detect_and_look(picture: Picture) -> Detections:
        seen.append(len(capsys.readouterr().out.splitlines()))
        return detect(picture)

    detect_in_sources([str(photos / "a.png"), str(photos / "nothing.png")], detect_and_look, output)
    assert seen == [0, 1]
    assert json.loads(capsys.readouterr().out)["detections"] == []


def test_the_line_of_a_frame_has_its_position_and_its_time_in_milliseconds(tmp_path):
    output = JsonLines(tmp_path / "boxes.jsonl", NAMES)
    output.add(found_in(Picture("film.mp4", scene(4), 7, 7 / 24)))
    output.close()
    line = json.loads((tmp_path / "boxes.jsonl").read_text())
    assert line.pop("detections") == [{"class": "light thing", "score": 0.75, "box_xyxy": [4.0, 10.0, 20.0, 22.0]}]
    assert line == {"image": "film.mp4", "frame": 7, "time_s": 0.292}


@pytest.mark.parametrize("name", [None, "boxes.jsonl"])
def test_of_lines_before_an_error_it_is_said_where_they_are(name, photos, tmp_path, capsys):
    def stop(picture: Picture) -> Detections:
        if picture.source.endswith("b.png"):
            raise BrokenPipeError
        return detect(picture)

    output = JsonLines(None if name is None else tmp_path / name, NAMES)
    with pytest.raises(BrokenPipeError):
        detect_in_sources([str(photos / "a.png"), str(photos / "b.png")], stop, output)
    told = capsys.readouterr().err
    assert ("are kept" in told) == (name is not None)
    assert name is None or f"the detections in 1 picture before the error are kept; see {tmp_path / name}\n" in told


@pytest.fixture
def film(tmp_path) -> Path:
    """A video of a light object that is hidden in the first frame and moves to the right."""
    pytest.importorskip("av", reason="the extra video is not installed")
    path = tmp_path / "film.mp4"
    writer = VideoWriter(path, Fraction(10))
    for step in range(6):
        writer.add(Image.fromarray(scene(4 + 4 * step, 0 if step == 0 else 220, size=(48, 64))))
    writer.close()
    return path


def test_each_video_has_its_own_files_which_end_before_the_next_source(tmp_path, monkeypatch):
    events = []

    class Writer:
        def __init__(self, path: Path, rate: Fraction):
            self._name = path.name
            events.append(f"{self._name} at {rate}")

        def add(self, picture: Image.Image) -> None:
            events.append(f"{self._name} frame")

        def close(self) -> None:
            events.append(f"{self._name} ends")

    monkeypatch.setattr("ovd.jobs.picture_files.VideoWriter", Writer)
    monkeypatch.setattr("ovd.jobs.picture_files.describe_video", lambda path: (Fraction(10), 2))
    sources = [str(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.png")]
    output = PictureFiles(sources, NAMES, None)
    for source, frame in ((sources[0], 0), (sources[0], 1), (sources[1], 0), (sources[2], None)):
        output.add(found_in(Picture(source, scene(4), frame, None if frame is None else 0.1 * frame)))
    output.close()
    assert events == [
        "a.detections.mp4 at 10", "a.detections.mp4 frame", "a.detections.mp4 frame", "a.detections.mp4 ends",
        "b.detections.mp4 at 10", "b.detections.mp4 frame", "b.detections.mp4 ends",
    ]  # fmt: skip
    endings = ("a.detections.mp4", "b.detections.mp4", "c.detections.jpg")
    assert output.written == [tmp_path / name for name in endings]
    frames = [
        [json.loads(line)["frame"] for line in (tmp_path / f"{film}.detections.jsonl").read_text().splitlines()]
        for film in "ab"
    ]
    assert frames == [[0, 1], [0]]


def test_a_video_becomes_a_video_with_boxes_and_a_line_per_frame(film):
    output = PictureFiles([str(film)], NAMES, None)
    detect_in_sources([str(film)], detect, output)
    assert output.written == [film.with_name("film.detections.mp4")]
    lines = [json.loads(line) for line in film.with_name("film.detections.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    assert [line["time_s"] for line in lines] == pytest.approx([0.1 * step for step in range(6)])
    assert [len(line["detections"]) for line in lines] == [0, 1, 1, 1, 1, 1]
    for line in lines[1:]:
        x0 = line["detections"][0]["box_xyxy"][0]
        assert abs(x0 - (4 + 4 * line["frame"])) <= 2  # tolerance for the compression of the video


def test_one_object_keeps_its_number_through_a_video(film, tmp_path):
    for package in ("trackers", "supervision"):
        pytest.importorskip(package, reason="the extra video is not installed")
    coco = CocoFile(tmp_path / "boxes.json", NAMES)
    assert (
        detect_in_sources([str(film)], detect, coco, track_above=0.5).num_used("box") == 4
    )  # only tracked boxes are written
    rows = json.loads((tmp_path / "boxes.json").read_text())["annotations"]
    assert [row["image_id"] for row in rows] == [3, 4, 5, 6]  # seen in frame 1, tracked from the second time on
    assert {row["track_id"] for row in rows} == {1}
    pictures = PictureFiles([str(film)], NAMES, tmp_path / "out")
    detect_in_sources([str(film)], detect, pictures, track_above=0.5)
    assert (tmp_path / "out" / "film.detections.mp4").stat().st_size > 1000
