"""Figures written to files."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ovd.visualize.figure import write_figure

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_figure_becomes_a_png_file_whatever_its_name(tmp_path: Path) -> None:
    write_figure(Figure(figsize=(1, 1)), tmp_path / "figure")
    assert (tmp_path / "figure").read_bytes().startswith(PNG)


def test_a_figure_that_cannot_be_drawn_leaves_the_earlier_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"earlier")

    def savefig(figure: Figure, file, **_: object) -> None:
        file.write(PNG)
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match="full"):
        write_figure(Figure(), path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"earlier"]
