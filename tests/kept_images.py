"""An annotation file with few of its images."""

from collections.abc import Container
from typing import Any


def keep_images(content: dict[str, Any], kept: Container[int]) -> None:
    """Leave out the other images of an annotation file, and their boxes."""
    if "images" in content:  # which the world's file of hidden boxes has not
        content["images"] = [image for image in content["images"] if image["id"] in kept]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
