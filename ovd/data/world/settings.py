"""The world's settings, each with its reason. Frozen: no result may tune them.

The figures called "LVIS" were read from the LVIS v1 training category statistics (1,203 categories) and from the
annotations of 100 LVIS validation images, before any detector was trained on this world.
"""

from dataclasses import asdict, dataclass

from ovd.files import hash_of


@dataclass(frozen=True)
class Style:
    """How a scene is rendered. The transfer sets differ from the training scenes in style, not in the glyphs."""

    blur_probability: float = 0.15
    """Chance of a Gaussian blur of 0.4 to 0.9 px over the whole scene."""
    noise_std: float = 5.0
    """Upper end of the standard deviation of per-pixel noise, in grey levels of 255."""
    outline_probability: float = 0.0
    """Chance that an object gets a contour of another colour."""
    shadow_probability: float = 0.0
    """Chance that an object casts a soft shadow."""
    perspective: float = 0.0
    """Largest displacement of a glyph's corners, as a fraction of its side."""
    background: str = "clouds"
    """`clouds` (smooth colour noise), or `patterns` (adds stripes, checks and gradients)."""


@dataclass(frozen=True)
class Settings:
    """Everything a world is made of. The same settings give the same bytes (per library versions)."""

    seed: int = 0
    """Draws the scenes and which classes are rare; never the list of classes."""

    image_size_px: int = 192
    """Square scenes: a detector step on two CPU cores takes a fraction of a second at this size."""
    object_size_px: tuple[int, int] = (20, 96)
    """Longest side of an object, 1.25 to 6 times the backbone's last stride of 16 px. LVIS objects span 0.015 to 0.73
    of the image side (1st to 99th percentile); 20 to 96 of 192 px is 0.10 to 0.50."""
    size_skew: float = 1.4
    """Sizes are log-uniform to the power of this: small objects are more frequent, as in LVIS, where half of
    the objects are below 0.07 of the image side and a tenth is above 0.29."""
    objects_per_image: tuple[float, ...] = (0.12, 0.16, 0.18, 0.17, 0.14, 0.11, 0.07, 0.05)
    """Probability of 1 to 8 objects, mean 3.9. LVIS: median 5 boxes of 2.5 classes; more would not fit in 192 px."""
    distractors_per_image: tuple[int, int] = (0, 3)
    """Scribbles, blobs and Latin letters that belong to no class."""

    max_images_per_class: int = 128
    """Train images per class follow LVIS's own distribution (its quantiles: 28 % of categories have at most 10
    images, 34 % more than 100), cut off here so that 4,500 scenes hold it. LVIS's cut-offs for rare (<= 10) and
    common (<= 100) then apply unchanged."""
    val_boxes_per_class: int = 18
    """Boxes of every class in val before hiding, at least 15 after: an AP over two objects would be noise."""
    negatives_per_image: float = 9.4
    """Verified absent classes per image, LVIS's mean."""
    hidden_class_probability: float = 0.06
    """Chance that a class present in an image is neither annotated nor listed: LVIS's annotation is federated, most
    categories were never looked for in most images. The hidden boxes are kept in a file of their own."""
    not_exhaustive_probability: float = 0.2
    """Chance that a class with several instances in an image has one left out and is listed as not exhaustive
    (LVIS: 0.16 such classes per image)."""

    num_pairs: int = 6000
    """Captioned scenes for self-training, of the training scenes' size and style."""
    num_pretraining_pairs: int = 60000
    """Captioned scenes for the tiny CLIP: smaller and with fewer objects, as web images are next to detection data."""
    pretraining_image_size_px: int = 112
    pretraining_object_size_px: tuple[int, int] = (20, 92)
    pretraining_size_skew: float = 0.7
    """Below 1 bends sizes towards large objects: what a web image is of fills a good part of it."""
    pretraining_objects_per_image: tuple[float, ...] = (0.7, 0.2, 0.1)
    pairs_per_shard: int = 1000

    caption_omission: float = 0.15
    """Chance that a caption leaves an object out."""
    caption_synonym: float = 0.2
    """Chance that an object is called by a synonym, where it has one."""
    caption_color: float = 0.2
    """Chance that a colour is named."""
    caption_wrong_word: float = 0.03
    """Chance that an object is called by another class's name."""

    num_transfer_images: int = 600
    num_coco_classes: int = 80
    train_style: Style = Style()
    coco_style: Style = Style(outline_probability=0.4, background="patterns")
    objects365_style: Style = Style(
        shadow_probability=0.5, perspective=0.12, blur_probability=0.35, noise_std=9.0, background="patterns"
    )

    def key(self) -> str:
        """Hash of all settings, which names the folder the world is cached in."""
        return hash_of(asdict(self))


LVIS_IMAGE_COUNT_QUANTILES = (
    # Every 2.5 % of the sorted `image_count` column of LVIS v1 train.
    1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 9, 10, 12, 14, 16, 18, 22, 26, 29, 33, 37, 44, 49, 56, 66, 76, 91, 106, 130, 162,
    221, 270, 358, 528, 725, 1010, 1401, 1687, 1876, 1915, 1977,
)  # fmt: skip
