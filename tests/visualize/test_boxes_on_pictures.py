"""Drawn detections: the boxes shown, their colors and places, and grids of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ovd.structures import Detections
from ovd.visualize import boxes as boxes_on_pictures
from ovd.visualize.boxes import GRID_PX, LEGEND, RARE_COLOR, choose_shown, draw_detections, grid, write_grid
from ovd.visualize.labels import Label
from ovd.visualize.palette import class_color

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
    assert choose_shown(FOUND, 0.0, limit=2).scores.tolist() == FOUND.scores[[0, 2]].tolist()  # of different places
    assert len(choose_shown(FOUND, 0.7).scores) == 2  # a score equal to the threshold is enough
    assert len(choose_shown(NOTHING, 0.0).scores) == 0


@pytest.mark.parametrize(("shift", "num_shown"), [(20.0, 1), (32.0, 1), (34.0, 2)])
def test_boxes_are_at_one_place_above_an_iou_of_a_half(shift, num_shown):
    """Boxes 100 px wide, shifted against each other; their IoU is (100 - shift) / (100 + shift)."""
    boxes = torch.tensor([[0.0, 0, 100, 40], [shift, 0, 100 + shift, 40]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]))
    assert len(choose_shown(found, 0.5).scores) == num_shown


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


def test_in_a_grid_every_picture_has_the_same_longest_side():
    for shape in ((64, 96, 3), (1000, 250, 3)):
        assert max(draw_detections(np.zeros(shape, np.uint8), NOTHING, [], in_grid=True).size) == GRID_PX


def test_rare_classes_are_told_from_others_and_missed_ones_are_white(monkeypatch):
    drawn = []
    monkeypatch.setattr("ovd.visualize.boxes.draw_labels", lambda canvas, labels, text_px: drawn.extend(labels))
    missed = FOUND.take(torch.tensor([0, 2]))
    image = np.zeros((100, 100, 3), np.uint8)
    draw_detections(image, FOUND.take(torch.tensor([0, 2])), ["jar", "owl"], missed=missed, rare={1})
    assert [label.text for label in drawn] == ["jar 0.90", "★ owl 0.70", "(jar)", "(★ owl)"]
    assert [label.background for label in drawn] == [class_color("jar"), RARE_COLOR, (255, 255, 255), (255, 255, 255)]
    assert [label.box for label in drawn[:2]] == [(40, 40, 200, 200), (240, 80, 360, 240)]


def test_of_frames_at_one_place_the_best_one_is_on_top_and_a_rare_one_thicker():
    ground = np.zeros((400, 500, 3), np.uint8)
    boxes = torch.tensor([[100.0, 100, 300, 300]] * 2)
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]))
    across = np.asarray(draw_detections(ground, found, ["jar", "owl"]))[250, 80:140]
    assert (across == class_color("jar")).all(axis=1).any()
    assert not (across == class_color("owl")).all(axis=1).any()
    rare = np.asarray(draw_detections(ground, found.take(torch.tensor([0])), ["jar"], rare={0}))[250, 80:140]
    widths = [(row == color).all(axis=1).sum() for row, color in ((across, class_color("jar")), (rare, RARE_COLOR))]
    assert widths == [2, 3]  # lines of 500 // 250 pixels, and of twice as many less one


def test_the_frame_of_a_box_is_seen_on_any_ground():
    for value in range(0, 256, 51):
        ground = np.full((400, 400, 3), value, np.uint8)
        box = Detections(torch.tensor([[100.0, 100, 300, 300]]), torch.tensor([0.9]), torch.tensor([0]))
        for rare in ((), (0,)):
            across = np.asarray(draw_detections(ground, box, ["jar"], rare=rare))[250, 90:115].astype(int)
            assert np.abs(across - value).max() > 100


def test_a_box_far_beyond_the_picture_takes_no_time(monkeypatch):
    image = np.full((300, 400, 3), 90, np.uint8)

    def draw(far: float) -> np.ndarray:
        boxes = torch.tensor([[40.0, 50, far, far], [-far, 20, 200, far]])
        found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
        return np.asarray(draw_detections(image, found, ["jar"]))

    lines = []
    draw_box = boxes_on_pictures._draw_box

    def noted(draw: ImageDraw.ImageDraw, label: Label, line: int) -> None:
        lines.append(label.box)
        draw_box(draw, label, line)

    monkeypatch.setattr(boxes_on_pictures, "_draw_box", noted)
    near, far = draw(700.0), draw(1e6)  # Pillow takes an hour for 1e11
    assert np.array_equal(near, far)
    assert np.abs(lines).max() <= 2 * 400


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


def test_a_note_stands_under_the_pictures_in_as_many_lines_as_it_needs():
    pictures = [Image.new("RGB", (300, 100)), Image.new("RGB", (300, 60))]
    without = np.asarray(grid(pictures, columns=2))
    heights = [grid(pictures, columns=2, note=LEGEND[:length]).height for length in (20, 60)]
    assert without.shape[0] < heights[0] < heights[1]
    with_note = np.asarray(grid(pictures, columns=2, note=LEGEND))
    assert np.array_equal(with_note[: without.shape[0]], without)
    assert with_note[without.shape[0] :, -2:].min() == 255  # nothing reaches the right edge
    assert with_note[without.shape[0] :].min() == 0


def test_letters_of_a_note_that_no_font_has_are_told_and_have_a_mark(monkeypatch, capsys):
    monkeypatch.setattr("ovd.visualize.labels.findSystemFonts", list)
    pictures = [Image.new("RGB", (300, 100))]
    drawn = np.asarray(grid(pictures, columns=1, note="a \ufdd2"))
    assert "no font on this system has all of \ufdd2" in capsys.readouterr().err
    assert np.array_equal(drawn, np.asarray(grid(pictures, columns=1, note="a ?")))


def test_a_note_under_a_very_narrow_picture_is_no_error():
    """A lone picture of 2 x 400 pixels, as of a line scan, is narrower in a grid than a letter of the note."""
    narrow = draw_detections(np.zeros((400, 2, 3), np.uint8), NOTHING, [], in_grid=True)
    drawn = grid([narrow], columns=4, note=LEGEND)
    assert drawn.width < 20
    assert drawn.height > grid([narrow], columns=4).height


@pytest.mark.parametrize(("name", "form"), [("a.jpg", "JPEG"), ("a.png", "PNG")])
def test_a_grid_is_written_in_the_form_that_its_name_says(name, form, tmp_path):
    write_grid([Image.new("RGB", (30, 20))], tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert picture.format == form
