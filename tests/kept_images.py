"""Annotation files reduced to a few of their images."""

from collections.abc import Container
from typing import Any


def keep_images(content: dict[str, Any], kept: Container[int]) -> None:
    """Remove all images but `kept` from the content of an annotation file, and their boxes."""
    if "images" in content:  # the world's file of hidden boxes has no images
        content["images"] = [image for image in content["images"] if image["id"] in kept]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
