"""Names on pictures: fonts, positions, and letters that no font has."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image

from ovd.data.world.glyphs import FONT
from ovd.visualize.labels import FontFile, Label, draw_labels, find_font, place_labels

PICTURE = (400, 300)


def label(left: float, top: float, right: float, bottom: float, *, below: bool = False) -> Label:
    return Label("jar", (left, top, right, bottom), (0, 0, 200), (255, 255, 255), below)


def test_letters_that_the_usual_font_lacks_are_drawn_with_another_or_told(monkeypatch, capsys, tmp_path):
    usual, other = find_font(frozenset("umbrella")).path, str(FONT.with_name("STIXGeneral.ttf"))
    assert Path(usual).name == "DejaVuSans.ttf"
    letter = next(chr(code) for code in FT2Font(other).get_charmap() if code not in FT2Font(usual).get_charmap())
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr("ovd.visualize.labels.findSystemFonts", lambda: [other, str(tmp_path / "broken.ttf")])
    assert find_font(frozenset({letter})) == FontFile(other)
    assert capsys.readouterr().err == ""
    assert find_font(frozenset({"\ufdd0", "a"})) == FontFile(usual, frozenset({"\ufdd0"}))
    assert "no font on this system has all of \ufdd0" in capsys.readouterr().err


def test_of_two_fonts_that_lack_letters_the_one_that_lacks_fewer_is_taken(monkeypatch):
    other = str(FONT.with_name("STIXGeneral.ttf"))
    usual = find_font(frozenset("umbrella")).path
    letter = next(chr(code) for code in FT2Font(other).get_charmap() if code not in FT2Font(usual).get_charmap())
    monkeypatch.setattr("ovd.visualize.labels.findSystemFonts", lambda: [other])
    font = find_font(frozenset({letter, "\ufdd1"}))
    assert font == FontFile(other, frozenset({"\ufdd1"}))
    assert font.replace_missing(f"a{letter}\ufdd1") == f"a{letter}?"


def test_pictures_with_other_scores_read_no_font_again_and_warn_once(monkeypatch, capsys):
    other = str(FONT.with_name("STIXGeneral.ttf"))
    read = list[str]()

    def noted(path: str) -> FT2Font:
        read.append(path)
        return FT2Font(path)

    monkeypatch.setattr("ovd.visualize.labels.findSystemFonts", lambda: [other])
    find_font(frozenset({"\ufdd3"}))
    monkeypatch.setattr("ovd.visualize.labels.FT2Font", noted)
    for digit in "0123":
        assert find_font(frozenset({"\ufdd3", digit})).missing == {"\ufdd3"}
    assert read == []
    assert capsys.readouterr().err.count("warning:") == 1
    find_font(frozenset({"\ufdd3", "\ufdd4"}))
    assert "no font on this system has all of \ufdd4;" in capsys.readouterr().err


def test_a_label_stands_over_its_box_or_under_it_or_beside_it_and_in_the_picture():
    assert place_labels([label(50, 100, 90, 140)], [(60, 20)], PICTURE) == [(50, 80)]
    assert place_labels([label(50, 100, 90, 140, below=True)], [(60, 20)], PICTURE) == [(50, 140)]
    assert place_labels([label(380, 100, 399, 140)], [(60, 20)], PICTURE) == [(339, 80)]
    assert place_labels([label(50, 0, 90, 40)], [(60, 20)], PICTURE) == [(90, 0)]  # there is no room above the box
    assert place_labels([], [], PICTURE) == []


def test_labels_of_boxes_at_one_place_do_not_cover_each_other():
    labels = [label(150, 100, 190, 140), label(152, 101, 190, 140), label(150, 100, 190, 141, below=True)]
    sizes = [(60.0, 20.0)] * 3
    corners = place_labels(labels, sizes, PICTURE)
    areas = [(x, y, x + width, y + height) for (x, y), (width, height) in zip(corners, sizes, strict=True)]
    for number, (x0, y0, x1, y1) in enumerate(areas):
        assert min(x0, y0) >= 0
        assert x1 < PICTURE[0]
        assert y1 < PICTURE[1]
        for a0, b0, a1, b1 in areas[:number]:
            assert min(x1, a1) <= max(x0, a0) or min(y1, b1) <= max(y0, b0)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_labels_are_drawn_in_their_colors_however_many_there_are(count):
    canvas = Image.new("RGB", PICTURE)
    draw_labels(canvas, [label(150, 100, 190, 140)] * count, 14)
    pixels = np.asarray(canvas).reshape(-1, 3)
    assert (pixels == (0, 0, 200)).all(axis=1).any() == (count > 0)


def test_a_name_of_several_lines_is_drawn_in_one():
    """Names in annotation files may end in a line end, as the lines of a text file do."""
    canvases = []
    for text in ("a bat", "a\n bat\n"):
        canvas = Image.new("RGB", PICTURE)
        draw_labels(canvas, [Label(text, (150, 100, 190, 140), (0, 0, 200), (255, 255, 255))], 14)
        canvases.append(np.asarray(canvas))
    assert np.array_equal(canvases[0], canvases[1])
