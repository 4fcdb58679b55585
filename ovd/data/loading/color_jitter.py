"""Random changes of brightness, contrast, saturation and hue in one pass over the pixels.

Each of the four is affine in the colors, so that all together are one matrix. The hue turns about the grey axis: grey
stays grey, and a color keeps its mean of red, green and blue. (In HSV it would keep its largest of the three, which
makes most colors brighter or darker, and takes two conversions of the image.)
"""

import math
import random
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

_LUMA = np.array([0.299, 0.587, 0.114])  # what red, green and blue add to grey (ITU-R BT.601)
_UNCHANGED = np.eye(3, 4)
# The usual proportion of hue to brightness, contrast and saturation jitter: 0.1 to 0.4 (SimCLR, MoCo v2).
_HUE_SHARE = 0.25


@dataclass(frozen=True)
class ColorChange:
    """One change of all colors of an image."""

    brightness: float = 1
    """Factor."""
    contrast: float = 1
    """Factor of the distance to the mean grey of the image."""
    saturation: float = 1
    """Factor of the distance to the grey of the same brightness."""
    hue: float = 0
    """Part of a full turn, from red towards green."""
    order: tuple[int, ...] = (0, 1, 2, 3)
    """In which the four are done, by their place above."""

    @classmethod
    def draw(cls, strength: float, generator: np.random.Generator, py_random: random.Random) -> "ColorChange":
        """Factors from 1 - strength (at least 0) to 1 + strength, the hue by up to a quarter of it, in any order."""
        brightness, contrast, saturation = (py_random.uniform(max(0, 1 - strength), 1 + strength) for _ in range(3))
        hue = py_random.uniform(-strength * _HUE_SHARE, strength * _HUE_SHARE)
        order = [0, 1, 2, 3]
        generator.shuffle(order)
        return cls(brightness, contrast, saturation, hue, tuple(order))

    def matrix(self, mean: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3 4"]:
        """What the change does to a color (R G B 1).

        Args:
            mean: color of the image.
        """
        whole = _UNCHANGED.copy()
        for step in self.order:
            if step == 0:
                whole *= self.brightness
            elif step == 1:
                grey = _LUMA @ whole
                whole *= self.contrast
                whole[:, 3] += (1 - self.contrast) * (grey[:3] @ mean + grey[3])
            elif step == 2:
                whole = self.saturation * whole + (1 - self.saturation) * (_LUMA @ whole)
            else:
                whole = _turn(self.hue) @ whole
        return whole

    def of(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """The image with its colors changed; what leaves 0 to 255 is cut off."""
        mean = np.array(cv2.mean(pixels)[:3])
        return cv2.transform(pixels, self.matrix(mean))


def _turn(part: float) -> Float64[np.ndarray, "3 3"]:
    """The rotation about the grey axis; a third of a turn makes green of red, and blue of green."""
    # The rows are one another shifted, so that the three shares of a row say all.
    red, green, blue = ((1 + 2 * math.cos(2 * math.pi * (part - third / 3))) / 3 for third in range(3))
    return np.array([[red, blue, green], [green, red, blue], [blue, green, red]])
