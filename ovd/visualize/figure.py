"""Matplotlib's figures as PNG files."""

from pathlib import Path
from typing import TYPE_CHECKING

from ovd.files import atomic_write

if TYPE_CHECKING:  # matplotlib, which takes half a second to import
    from matplotlib.figure import Figure

DPI = 100


def write_figure(figure: "Figure", path: Path, *, dpi: int = DPI) -> None:
    """Write a figure as a PNG file, which appears whole or not at all."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=dpi)
