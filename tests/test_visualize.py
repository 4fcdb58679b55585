from pathlib import Path

import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image

from ovd.data.world.glyphs import FONT
from ovd.structures import Detections
from ovd.visualize import choose_shown, draw_detections, font_with, grid

FOUND = Detections(
    boxes=torch.tensor([[10.0, 10, 50, 50], [12.0, 10, 50, 50], [60.0, 20, 90, 60], [0.0, 0, 5, 5]]),
    scores=torch.tensor([0.9, 0.8, 0.7, 0.1]),
    classes=torch.tensor([0, 1, 1, 0]),
)
NOTHING = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def test_only_the_best_at_a_place_is_shown_unless_overlaps_are_wanted():
    assert choose_shown(FOUND, 0.5).scores.tolist() == torch.tensor([0.9, 0.7]).tolist()
    assert len(choose_shown(FOUND, 0.5, overlapping=True).scores) == 3
    assert len(choose_shown(FOUND, 0.0, limit=1).scores) == 1
    assert len(choose_shown(NOTHING, 0.0).scores) == 0


def test_each_class_may_have_a_threshold_of_its_own():
    assert choose_shown(FOUND, [0.95, 0.75], overlapping=True).scores.tolist() == FOUND.scores[1:2].tolist()
    assert choose_shown(FOUND, [0.0, 0.75], overlapping=True).scores.tolist() == FOUND.scores[[0, 1, 3]].tolist()
    assert len(choose_shown(NOTHING, [0.5, 0.5]).scores) == 0


def test_small_non_square_images_are_enlarged_and_boxes_drawn_where_they_are():
    image = np.zeros((64, 96, 3), np.uint8)
    picture = draw_detections(image, choose_shown(FOUND, 0.5), ["first", "second"], with_scores=False)
    assert picture.size == (96 * 4, 64 * 4)
    pixels = np.asarray(picture)
    assert pixels[4 * 50, 4 * 30].any()  # on the lower side of the first box
    assert not pixels[4 * 62, 4 * 30].any()


def test_an_image_without_detections_stays_as_it_is():
    image = np.full((400, 500, 3), 7, np.uint8)
    assert np.array_equal(np.asarray(draw_detections(image, NOTHING, [])), image)


def test_letters_that_the_usual_font_lacks_are_drawn_with_another_or_told(monkeypatch, capsys, tmp_path):
    usual, other = font_with(frozenset("umbrella")), str(FONT.with_name("STIXGeneral.ttf"))
    assert Path(usual).name == "DejaVuSans.ttf"
    letter = next(chr(code) for code in FT2Font(other).get_charmap() if code not in FT2Font(usual).get_charmap())
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr("ovd.visualize.findSystemFonts", lambda: [other, str(tmp_path / "broken.ttf")])
    assert font_with(frozenset({letter})) == other
    assert capsys.readouterr().err == ""
    assert font_with(frozenset({"\ufdd0", "a"})) == usual
    assert "no font of this system has all of \ufdd0" in capsys.readouterr().err


def test_a_grid_of_few_pictures_has_no_empty_columns():
    pictures = [Image.new("RGB", size, "red") for size in ((30, 20), (10, 25))]
    assert grid(pictures, columns=4).size == (2 * 36, 31)
    assert grid(pictures[:1], columns=4).size == (36, 26)


def test_grids_hold_every_picture():
    pictures = [draw_detections(np.full((400, 500, 3), value, np.uint8), NOTHING, []) for value in (10, 20, 30)]
    pixels = np.asarray(grid(pictures, columns=2))
    assert pixels.shape == (2 * 406, 2 * 506, 3)
    centers = [(203 + 406 * row, 253 + 506 * column) for row, column in ((0, 0), (0, 1), (1, 0))]
    assert [int(pixels[center][0]) for center in centers] == [10, 20, 30]
