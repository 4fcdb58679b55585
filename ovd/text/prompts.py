"""Prompt templates for class names."""

from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from ovd.choices import Templates

SHORT_TEMPLATES = (
    "{}",
    "{article} {}",
    "a photo of {article} {}",
    "a picture of {article} {}",
    "a drawing of {article} {}",
    "an image with {article} {}",
    "there is {article} {}",
)
FULL_TEMPLATES = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
TEMPLATES: dict[Templates, tuple[str, ...]] = {"none": ("{}",), "short": SHORT_TEMPLATES, "full": FULL_TEMPLATES}
