"""The inputs that a user can name: files, folders, patterns, standard input and videos."""

import errno
import io
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from encoded_images import encode
from PIL import Image

from ovd.data.images.files import collect_images, find_images
from ovd.data.images.image_file import ImageError
from ovd.data.images.media import find_media, is_video, pictures_of
from ovd.data.images.video import VideoWriter, describe_video, read_frames

PATTERN = np.kron(np.indices((4, 6)).sum(axis=0) % 2 * 200, np.ones((16, 16))).astype(np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.jpg", "a.PNG", "below/c.webp", "below/note.txt", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(found: list[str], folder: Path) -> list[str]:
    return [str(Path(file).relative_to(folder)) for file in found]


def test_a_folder_is_what_is_in_it_and_below(folder):
    (folder / "film.mp4").write_bytes(b"x")
    assert names(find_media([str(folder)]), folder) == ["a.PNG", "b.jpg", "below/c.webp", "film.mp4"]


def test_pictures_with_detections_are_no_input_unless_they_are_named(folder, capsys):
    drawn = [folder / "b.detections.png", folder / "film.detections.mp4", folder / "below" / "c.detections.jpg"]
    for file in drawn:
        file.write_bytes(b"x")
    for word in (folder, folder / "**/*"):
        assert names(find_media([str(word)]), folder) == ["a.PNG", "b.jpg", "below/c.webp"]
        counted = f"warning: 3 files with detections are left out; the first: {drawn[0]}\n"
        assert capsys.readouterr().err == counted
    assert find_media([str(drawn[0])]) == [str(drawn[0])]
    assert find_images(folder) == [folder / "a.PNG", folder / "b.jpg", folder / "below/c.webp"]


def test_links_to_folders_that_they_lie_in_are_not_followed(tmp_path, capsys):
    start, other = tmp_path / "all" / "start", tmp_path / "other"
    (start / "below").mkdir(parents=True)
    other.mkdir()
    for path in (start / "a.jpg", start / "below" / "b.jpg", other / "c.jpg", tmp_path / "all" / "d.jpg"):
        path.touch()
    (start / "good").symlink_to(other)
    for link, target in ((start / "self", "."), (start / "below" / "up", ".."), (start / "out", "../.."),
                         (other / "back", start)):  # fmt: skip
        link.symlink_to(target)
    expected = [start / "a.jpg", start / "below" / "b.jpg", start / "good" / "c.jpg"]
    assert find_media([str(start)]) == list(map(str, expected))
    capsys.readouterr()
    assert find_images(start) == expected
    assert f"4 links to a folder around the link not followed; the first: {start}/below/up" in capsys.readouterr().err


def test_of_a_large_tree_no_more_is_looked_at_than_tells_that_something_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ovd.data.images.files.MAX_ENTRIES_SEEN", 6)
    looked_at = []
    monkeypatch.setattr("ovd.data.images.files._identity", lambda path: looked_at.append(path))
    (tmp_path / "a.jpg").touch()
    for number in range(20):
        (tmp_path / f"{number:02}").mkdir()
        (tmp_path / f"{number:02}" / "b.jpg").touch()
    collect_images([str(tmp_path)], recursive=False)
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {tmp_path}: at least 3 images in subfolders are left out; the first: ")
    assert len([path for path in looked_at if Path(path).parent == tmp_path]) == 3
    for file in tmp_path.glob("*/b.jpg"):
        file.rename(file.with_suffix(".txt"))
    collect_images([str(tmp_path)], recursive=False)
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}: subfolders are left out; their first 6 files and folders contain no image "
        "(--recursive reads all)\n"
    )


def test_each_file_is_named_once_in_the_order_of_the_words(folder):
    words = [str(folder / "b.jpg"), str(folder), str(folder / "*.jpg")]
    assert names(find_media(words), folder) == ["b.jpg", "a.PNG", "below/c.webp"]
    assert names(find_media([str(folder / "**/*")]), folder) == ["a.PNG", "b.jpg", "below/c.webp"]


def test_two_spellings_of_a_path_are_one_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    name = next(path.name for path in sorted(folder.iterdir()) if path.is_file())
    assert find_media([name, f"./{name}", str(folder / name)]) == [name]


def test_a_name_with_the_signs_of_a_pattern_is_a_file_where_there_is_one(folder):
    (folder / "x[1].jpg").write_bytes(b"x")
    assert names(find_media([str(folder / "x[1].jpg")]), folder) == ["x[1].jpg"]


def test_nothing_found_is_an_error(folder):
    for word in (folder / "*.mkv", folder / "none*"):
        with pytest.raises(ValueError, match=r"no image or video found; their names end in \.jpg"):
            find_media([str(word)])
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no image"):
        find_media([str(folder / "empty")])
    with pytest.raises(ValueError, match="only once"):
        find_media(["-", "-"])
    assert find_media([str(folder / "none.jpg")]) == [str(folder / "none.jpg")]  # reading it reports it as missing


def test_a_link_that_leads_nowhere_is_found_and_a_folder_with_an_images_name_is_not(folder):
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "d.jpg").mkdir()
    expected = ["a.PNG", "b.jpg", "below/c.webp", "gone.jpg"]
    for word in (folder, folder / "**/*"):
        assert names(find_media([str(word)]), folder) == expected
    _, found = collect_images([str(folder)], recursive=False)
    assert names(list(map(str, found)), folder) == ["a.PNG", "b.jpg", "gone.jpg"]
    with pytest.raises(ImageError, match=r"gone\.jpg: file is missing"):
        list(pictures_of(str(folder / "gone.jpg")))


@pytest.mark.parametrize("address", ["https://example.org/x.jpg?y=1", "rtsp://example.org/live", "HTTP://a/*.jpg"])
def test_addresses_are_not_read(address, folder, monkeypatch):
    with pytest.raises(ValueError, match="URLs are not supported; download") as caught:
        find_media([address])
    assert str(caught.value).startswith(f"{address}: ")
    assert (f"curl -sL '{address}' | ovd detect -" in str(caught.value)) == (not address.startswith("rtsp"))
    (folder / "rtsp:").mkdir()
    (folder / "rtsp:" / "x.jpg").write_bytes(b"x")
    monkeypatch.chdir(folder)
    assert find_media(["rtsp://x.jpg"]) == ["rtsp://x.jpg"]


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encode(PATTERN, "PNG"))))
    (picture,) = pictures_of("-")
    assert picture.source == "-"
    assert picture.frame is None
    assert np.array_equal(picture.pixels, np.repeat(PATTERN[..., None], 3, axis=2))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no image")))
    with pytest.raises(ImageError, match="standard input"):
        list(pictures_of("-"))


def write_video(path: Path, frames: list[np.ndarray], rate: Fraction = Fraction(10)) -> None:
    writer = VideoWriter(path, rate)
    for frame in frames:
        writer.add(Image.fromarray(frame))
    writer.close()


@pytest.fixture
def frames() -> list[np.ndarray]:
    """Six frames with odd sides in which a gray pattern moves to the right."""
    whole = np.repeat(np.pad(PATTERN, ((0, 1), (0, 41)))[..., None], 3, axis=2)
    return [np.roll(whole, 5 * step, axis=1) for step in range(6)]


def test_a_video_gives_its_frames_in_order_with_their_times(tmp_path, frames):
    pytest.importorskip("av", reason="the extra video is not installed")
    path = tmp_path / "film.mp4"
    write_video(path, frames)
    assert is_video(str(path))
    assert describe_video(path) == (Fraction(10), 6)
    pictures = list(pictures_of(str(path)))
    assert [picture.frame for picture in pictures] == list(range(6))
    assert [picture.time_s for picture in pictures] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    for picture, frame in zip(pictures, frames, strict=True):
        assert picture.pixels.shape == (64, 136, 3)  # an odd side is cut by a pixel
        own = np.abs(picture.pixels.astype(int) - frame[:64, :136]).mean()
        others = min(
            np.abs(picture.pixels.astype(int) - other[:64, :136]).mean() for other in frames if other is not frame
        )
        assert own < 8 < others


def test_what_is_no_video_is_an_image_error(tmp_path, frames):
    pytest.importorskip("av", reason="the extra video is not installed")
    (tmp_path / "text.mp4").write_text("no video")
    for path, code in ((tmp_path / "text.mp4", "F9"), (tmp_path / "none.mp4", "F8")):
        for read in (lambda path=path: list(read_frames(path)), lambda path=path: describe_video(path)):
            with pytest.raises(ImageError) as raised:
                read()
            assert raised.value.code == code
            assert str(path) in str(raised.value)
    write_video(tmp_path / "whole.mp4", frames)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 3])
    with pytest.raises(ImageError, match="cannot be read as a video"):
        list(read_frames(tmp_path / "cut.mp4"))


def test_a_video_that_ends_long_before_its_length_is_an_error_after_its_last_frame(tmp_path, frames):
    av = pytest.importorskip("av", reason="the extra video is not installed")
    path = tmp_path / "long.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 136, 64, "yuv420p"
        for frame in frames * 10:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:64, :136]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert len(list(read_frames(path))) == 60
    content = path.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(content[: len(content) // 2])
    found: list[float] = []

    def read() -> None:
        for time_s, _ in read_frames(cut):
            found.append(time_s)

    with pytest.raises(ImageError, match=r"the frames end after \d\.\d of 6\.0 s; the rest is missing or damaged"):
        read()
    assert 5 < len(found) < 50


def test_a_slide_show_ends_with_its_last_picture(tmp_path, frames):
    pytest.importorskip("av", reason="the extra video is not installed")
    write_video(tmp_path / "slides.mp4", frames[:3], Fraction(1, 10))
    assert len(list(read_frames(tmp_path / "slides.mp4"))) == 3


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"this needs the package av: pip install 'ovd\[video\]'"):
        next(read_frames(tmp_path / "film.mp4"))


def test_folders_that_cannot_be_read_are_counted(folder, capsys, monkeypatch):
    def scandir(path: str, scan=os.scandir):
        if os.path.basename(path) == "below":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_images(folder) == [folder / "a.PNG", folder / "b.jpg"]
    words = f"the first: {folder / 'below'} cannot be read (Permission denied)"
    assert capsys.readouterr().err == f"warning: the files of 1 folder are left out; {words}\n"
    assert find_images(folder / "none") == []
    assert capsys.readouterr().err == ""
