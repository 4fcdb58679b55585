"""The activation and image normalization that weights were trained with, which a model must share."""

import open_clip

import ovd.clip.tiny_net  # noqa: F401  registers the tiny backbone with timm


def _other_activation(name: str) -> str:
    """Return the name of the same model with the other activation; open_clip may not have it."""
    return name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"


def tag_needs_quick_gelu(name: str, tag: str) -> bool | None:
    """Whether a tag's weights were trained with QuickGELU; None if the model exists with one activation only.

    Raises:
        ValueError: there is no such tag.
    """
    for of_model in (name, _other_activation(name)):
        if tag in open_clip.list_pretrained_tags_by_model(of_model):
            is_one_of_two = _other_activation(name) in open_clip.list_models()
            return bool(open_clip.get_pretrained_cfg(of_model, tag).get("quick_gelu")) if is_one_of_two else None
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    raise ValueError(f"clip.weights {tag!r} is neither a file, nor `random`, nor one of the tags of {name}: {tags}")


def check_activation(name: str, weights: str, needs_quick: bool) -> None:
    """Check the activation: weights trained with QuickGELU are silently worse in a model with GELU, and vice versa.

    Raises:
        ValueError: the weights were not trained with the named model's activation.
    """
    has_quick = bool(open_clip.get_model_config(name).get("quick_gelu"))
    if has_quick != needs_quick:
        other, kinds = _other_activation(name), ("GELU", "QuickGELU")
        known = other in open_clip.list_models()
        raise ValueError(
            f"clip.weights {weights!r} was trained with {kinds[needs_quick]}, {name} has {kinds[has_quick]}; "
            + (f"use clip.name={other}" if known else "open_clip has no such model with the other activation")
        )


def normalization_of(
    name: str, weights: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> dict[str, tuple[float, ...]]:
    """Return open_clip's preprocessing options with the normalization for the weights of a local file.

    Raises:
        ValueError: a given number is not of pixels from 0 to 1; or no normalization is given, and open_clip's weights
            of this name differ in it or do not exist.
    """
    if mean is not None and std is not None:
        if not (all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std)):
            raise ValueError(
                f"clip.mean {mean} and clip.std {std} are not of pixels from 0 to 1; divide those of 0 to 255 by 255"
            )
        return {"mean": mean, "std": std}
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    kinds = sorted({(tuple(config["mean"]), tuple(config["std"])) for config in published})
    if len(kinds) != 1:
        known = " or ".join(f"{mean} and {std}" for mean, std in kinds)
        raise ValueError(
            f"open_clip's weights of {name} have {len(kinds)} normalizations, and {weights} does not record its own; "
            f"set clip.mean and clip.std{f': {known}' if known else ''}"
        )
    return {"mean": kinds[0][0], "std": kinds[0][1]}
