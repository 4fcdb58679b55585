"""Colors of pictures: distinguishable by everybody, and always the same for a class and for a group."""

import itertools

import numpy as np
import pytest

from ovd.visualize.palette import GROUP_COLORS, PALETTE, class_color, group_colors

PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
"""Matrix on linear RGB that simulates deuteranopia (Machado, Oliveira and Fernandes, 2009, severity 1)."""


def linear(color: str | tuple[int, int, int]) -> np.ndarray:
    values = [int(color[place : place + 2], 16) for place in (1, 3, 5)] if isinstance(color, str) else color
    parts = np.array(values) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("sight", [np.eye(3), PROTANOPIA, DEUTERANOPIA])
def test_lines_are_told_apart_by_everybody(sight):
    seen = [np.clip(sight @ linear(color), 0, 1) ** (1 / 2.2) for color in PALETTE]
    assert min(np.abs(one - other).max() for one, other in itertools.combinations(seen, 2)) > 0.15


def test_a_class_has_one_color_whatever_it_is_asked_with_and_white_text_is_read_on_it():
    assert class_color("filled_star") == class_color("Filled star")
    names = [f"class {number}" for number in range(300)]
    assert len(set(map(class_color, names))) > 200
    contrast = [1.05 / (float(linear(class_color(name)) @ (0.2126, 0.7152, 0.0722)) + 0.05) for name in names]
    assert min(contrast) > 4.5


def test_a_group_keeps_its_color_and_no_other_line_has_it():
    assert group_colors(["all", "rare"]) == [GROUP_COLORS["all"], GROUP_COLORS["rare"]]
    mixed = group_colors(["IoU 0.50", "rare", "IoU 0.75"])
    assert mixed[1] == GROUP_COLORS["rare"]
    assert len(set(mixed)) == 3
    assert len(group_colors([str(number) for number in range(20)])) == 20
