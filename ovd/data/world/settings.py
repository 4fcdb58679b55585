"""Settings of the embedded world, each with its reason. They are frozen, and must not be tuned on results.

The figures called "LVIS" were read from the LVIS v1 training category statistics (1,203 categories) and from the
annotations of 100 LVIS validation images, before any detector was trained on this world.
"""

from dataclasses import asdict, dataclass

from ovd.files import short_hash


@dataclass(frozen=True)
class Style:
    """How a scene is rendered. The transfer sets differ from the training scenes in style, not in the glyphs."""

    blur_probability: float = 0.15
    """Probability of a Gaussian blur of 0.4 to 0.9 px over the whole scene."""
    noise_std: float = 5.0
    """Upper limit of the standard deviation of per-pixel noise, in gray levels of 255."""
    outline_probability: float = 0.0
    """Probability that an object gets an outline of another color."""
    shadow_probability: float = 0.0
    """Probability that an object casts a soft shadow."""
    perspective: float = 0.0
    """Largest displacement of a glyph's corners, as a fraction of its side."""
    background: str = "clouds"
    """`clouds` (smooth color noise), or `patterns` (adds stripes and checks)."""


@dataclass(frozen=True)
class Settings:
    """Settings that determine a world. The same settings give the same bytes (with the same library versions)."""

    seed: int = 0
    """Seed of the scenes and of the choice of rare classes, never of the list of classes."""

    image_size_px: int = 192
    """Side of the square scenes. A detector step on two CPU cores takes a fraction of a second at this size."""
    object_size_px: tuple[int, int] = (20, 96)
    """Smallest and largest length of an object's longest side, 1.25 and 6 times the backbone's last stride of 16 px.
    LVIS objects span 0.015 to 0.73 of the image side (1st to 99th percentile); 20 to 96 of 192 px is 0.10 to 0.50."""
    size_skew: float = 1.4
    """Exponent that skews log-uniform sizes: small objects are more frequent, as in LVIS, where half of the objects
    are below 0.07 of the image side and a tenth is above 0.29."""
    objects_per_image: tuple[float, ...] = (0.12, 0.16, 0.18, 0.17, 0.14, 0.11, 0.07, 0.05)
    """Probability of 1 to 8 objects, mean 3.9. LVIS: median 5 boxes of 2.5 classes; more would not fit in 192 px."""
    distractors_per_image: tuple[int, int] = (0, 3)
    """Smallest and largest number of distractors: scribbles, blobs and Latin letters that belong to no class."""

    max_images_per_class: int = 128
    """Upper limit of the train images per class. They follow LVIS's own distribution (28 % of categories have at most
    10 images, 34 % more than 100), clipped here so that 4,500 scenes hold it. LVIS's limits for rare (<= 10) and common
    (<= 100) classes then apply unchanged."""
    val_boxes_per_class: int = 18
    """Number of boxes of every class in val before hiding, at least 15 after: an AP over two objects would be noise."""
    negatives_per_image: float = 9.4
    """Mean number of verified absent classes per image, as in LVIS."""
    hidden_class_probability: float = 0.06
    """Probability that a class present in an image is neither annotated nor listed, since LVIS's annotation is
    federated: most images were never checked for most categories. The hidden boxes are stored in a separate file."""
    not_exhaustive_probability: float = 0.2
    """Probability that a class with several instances in an image has one left out and is listed as not exhaustive
    (LVIS: 0.16 such classes per image)."""

    num_pairs: int = 6000
    """Number of captioned scenes for self-training, of the training scenes' size and style."""
    num_pretraining_pairs: int = 60000
    """Number of captioned scenes for the tiny CLIP, smaller and with fewer objects, as web images are compared with
    detection data."""
    pretraining_image_size_px: int = 112
    pretraining_object_size_px: tuple[int, int] = (20, 92)
    pretraining_size_skew: float = 0.7
    """Exponent like `size_skew`; below 1 it favors large objects, since the subject of a web image fills much of it."""
    pretraining_objects_per_image: tuple[float, ...] = (0.7, 0.2, 0.1)
    pairs_per_shard: int = 1000

    caption_omission: float = 0.15
    """Probability that a caption leaves an object out."""
    caption_synonym: float = 0.2
    """Probability that an object is named by a synonym, if it has one."""
    caption_color: float = 0.2
    """Probability that the color is named, for a class with one object in the caption."""
    caption_wrong_word: float = 0.03
    """Probability that an object is named by a randomly drawn class."""

    num_transfer_images: int = 600
    num_coco_classes: int = 80
    train_style: Style = Style()
    coco_style: Style = Style(outline_probability=0.4, background="patterns")
    objects365_style: Style = Style(
        shadow_probability=0.5, perspective=0.12, blur_probability=0.35, noise_std=9.0, background="patterns"
    )

    def key(self) -> str:
        """Return a hash of all settings, which names the folder of the world."""
        return short_hash(asdict(self))


LVIS_IMAGE_COUNT_QUANTILES = (
    # Quantiles in steps of 2.5 % of the `image_count` column of LVIS v1 train.
    1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 9, 10, 12, 14, 16, 18, 22, 26, 29, 33, 37, 44, 49, 56, 66, 76, 91, 106, 130, 162,
    221, 270, 358, 528, 725, 1010, 1401, 1687, 1876, 1915, 1977,
)  # fmt: skip
