"""Random changes of brightness, contrast, saturation and hue in one pass over the pixels.

Each of the four is an affine map of the colors, so that all together are one matrix. The hue is rotated about the gray
axis: gray stays gray, and a color keeps its mean of red, green and blue. (A rotation in HSV keeps the largest of the
three instead, which makes most colors brighter or darker, and takes two conversions of the image.)
"""

import math
import random
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

_LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in gray (ITU-R BT.601)
_UNCHANGED = np.eye(3, 4)
# The usual proportion of hue to brightness, contrast and saturation jitter: 0.1 to 0.4 (SimCLR, MoCo v2).
_HUE_SHARE = 0.25


@dataclass(frozen=True)
class ColorChange:
    """Factors of a color change for a whole image."""

    brightness: float = 1
    """Factor of all channels."""
    contrast: float = 1
    """Factor of the distance to the mean gray of the image."""
    saturation: float = 1
    """Factor of the distance to the gray of the same brightness."""
    hue: float = 0
    """Hue rotation as a fraction of a full turn, from red towards green."""
    order: tuple[int, ...] = (0, 1, 2, 3)
    """Order in which the four changes are applied, by their position above."""

    @classmethod
    def draw(cls, strength: float, generator: np.random.Generator, py_random: random.Random) -> "ColorChange":
        """Draw factors from 1 - strength (at least 0) to 1 + strength, a hue within a quarter of it, and an order."""
        brightness, contrast, saturation = (py_random.uniform(max(0, 1 - strength), 1 + strength) for _ in range(3))
        hue = py_random.uniform(-strength * _HUE_SHARE, strength * _HUE_SHARE)
        order = [0, 1, 2, 3]
        generator.shuffle(order)
        return cls(brightness, contrast, saturation, hue, tuple(order))

    def matrix(self, mean: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3 4"]:
        """Return the matrix that maps a color (R G B 1) to its changed color.

        Args:
            mean: mean color of the image.
        """
        whole = _UNCHANGED.copy()
        for step in self.order:
            if step == 0:
                whole *= self.brightness
            elif step == 1:
                gray = _LUMA @ whole
                whole *= self.contrast
                whole[:, 3] += (1 - self.contrast) * (gray[:3] @ mean + gray[3])
            elif step == 2:
                whole = self.saturation * whole + (1 - self.saturation) * (_LUMA @ whole)
            else:
                whole = _turn(self.hue) @ whole
        return whole

    def of(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Return the image with changed colors, clipped to 0..255."""
        mean = np.array(cv2.mean(pixels)[:3])
        return cv2.transform(pixels, self.matrix(mean))


def _turn(part: float) -> Float64[np.ndarray, "3 3"]:
    """Return the rotation about the gray axis; a third of a turn maps red to green, and green to blue."""
    # The rows are cyclic shifts of one another, so that three values define the matrix.
    red, green, blue = ((1 + 2 * math.cos(2 * math.pi * (part - third / 3))) / 3 for third in range(3))
    return np.array([[red, blue, green], [green, red, blue], [blue, green, red]])
