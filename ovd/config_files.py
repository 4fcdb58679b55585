"""Configs as YAML files with `base:` inheritance and dotted overrides, checked against the settings of config/.

    config = load_config(Path("configs/quickstart.yaml"), ["train.steps=50"], TrainConfig)

An unknown key is an error that names the nearest one.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ovd.config.alignment import AlignConfig, FolderData, ShardData
from ovd.config.pretraining import PretrainConfig
from ovd.config.tables import AblationConfig, FineTuningTable
from ovd.config.training import DEFAULT_KINDS, FileData, GatedShortcutsConfig, NoShortcutsConfig, TrainConfig, WorldData
from ovd.plain_yaml import read_mapping, read_value
from ovd.section import Section

MAX_BASE_DEPTH = 10

RENAMED_KEYS = {
    "bank.synonyms": "bank.num_synonyms",
    "data.colour": "data.color",
    "detector.freeze_tower": "detector.freeze_backbone",
    "train.tower_rate": "train.backbone_rate",
}
"""New names of renamed keys, by their names in earlier versions."""


class ConfigError(ValueError):
    """Error of a config that cannot be used; the message names the file, the key and the nearest valid key."""

    code = "F27"


_TOOLS: dict[type[Section], str] = {
    TrainConfig: "ovd train",
    AlignConfig: "ovd align-backbone",
    PretrainConfig: "tools/pretrain_clip.py",
    AblationConfig: "tools/ablate.py",
    FineTuningTable: "tools/fine_tuning_table.py",
}

ConfigType = TypeVar("ConfigType", bound=Section)


def load_config(path: Path | str, overrides: Sequence[str], kind: type[ConfigType]) -> ConfigType:
    """Load a YAML config with its bases, and apply overrides of the form `train.steps=100`.

    Raises:
        ConfigError: unreadable YAML, an unknown key, a value of the wrong type, or circular bases.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides must be a list, such as [{overrides!r}]")
    values = _read_with_bases(Path(path), ())
    # A `kind` is applied first, since it clears its section and may be given after the section's settings.
    for override in sorted(overrides, key=lambda override: not override.partition("=")[0].endswith(".kind")):
        _apply_override(values, override)
    return parse_config(values, kind, str(path))


def parse_config(values: dict[str, Any], kind: type[ConfigType], source: str) -> ConfigType:
    """Convert plain data to a config of type `kind`.

    Args:
        source: name of the data in errors.

    Raises:
        ConfigError: an unknown key, or an invalid value.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        has_unknown_keys = any(problem["type"] == "extra_forbidden" for problem in error.errors())
        tools = [tool for other, tool in _TOOLS.items() if has_unknown_keys and _fits(values, other)]
        if tools:
            raise ConfigError(f"{source}: this is a config for {tools[0]}") from None
        problems = {".".join(map(str, problem["loc"])): _explain(problem, kind) for problem in error.errors()}
        renamed = [f"{key} is now called {RENAMED_KEYS[key]}" for key in problems if key in RENAMED_KEYS]
        lines = [f"keys of an earlier version: {'; '.join(renamed)}"] if renamed else []
        lines += [problem for key, problem in problems.items() if key not in RENAMED_KEYS]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def _fits(values: dict[str, Any], kind: type[Section]) -> bool:
    try:
        kind.model_validate(values)
    except ValidationError:
        return False
    return True


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in seen or len(seen) >= MAX_BASE_DEPTH:
        raise ConfigError(f"{path}: `base:` is circular or deeper than {MAX_BASE_DEPTH} files")
    values = _read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: `base:` is {base!r}; it must be the path of a config, relative to this one")
    return _merge(_read_with_bases(path.parent / base, (*seen, resolved)), values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return read_mapping(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings key by key; `over` has precedence, and replaces sections of another `kind` as a whole."""
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            kind = before.get("kind", DEFAULT_KINDS.get(key))
            same_kind = value.get("kind", kind) == kind
            value = _merge(before, value) if same_kind else value
        merged[key] = value
    return merged


KEYS_OF_OTHER_TRAINERS = {
    "lr": "train.learning_rate", "lr0": "train.learning_rate", "base_lr": "train.learning_rate",
    "epochs": "train.steps", "max_iter": "train.steps", "iterations": "train.steps",
    "imgsz": "data.size", "image_size": "data.size", "batch": "train.batch_size", "ims_per_batch": "train.batch_size",
    "num_workers": "data.workers", "epoch": "train.steps",
}  # fmt: skip
"""Keys of this toolkit by the names of similar keys in other trainers."""

_AMBIGUOUS_IN_YAML = re.compile(r"^[-+]?0[\d_]+$|^[-+]?\d[\d_]*(:\d+)+$|^[^'\"\[{]*\s#")
"""Pattern of override values that YAML reads in a way not meant on a command line: numbers with leading zeros or
colons, and comments."""


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: write it as key=value, for example train.steps=100")
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    if _AMBIGUOUS_IN_YAML.search(text):
        raise ConfigError(
            f"override {override!r}: YAML changes numbers that begin with 0 or contain a colon, and drops all after "
            "' #' as a comment; write numbers plainly, and put other text in quotes: key=\"'text'\""
        )
    try:
        value = read_value(text, f"override {override!r}")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    usual_kind = DEFAULT_KINDS.get(parents[-1]) if parents else None
    if last == "kind" and usual_kind is not None and section.get("kind", usual_kind) != value:
        section.clear()  # settings of the previous kind do not apply
    section[last] = value


def _explain(problem: Any, kind: type[BaseModel]) -> str:
    """Describe a validation error with the key as written in the config, and with the value if it is not a section."""
    parts = list(map(str, problem["loc"]))
    # pydantic puts the kind between a section that has several kinds and its key.
    kinds = [part for before, part in pairwise(parts) if before in DEFAULT_KINDS]
    written = [part for before, part in pairwise(["", *parts]) if before not in DEFAULT_KINDS]
    location = ".".join(written)
    if problem["type"] in ("string_type", "path_type") and isinstance(problem["input"], bool | int | float | date):
        return (
            f"{location}: YAML reads this as {problem['input']}, not as text; put it in quotes, "
            f"on the command line as {location}=\"'text'\""
        )
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        value = "" if isinstance(problem["input"], dict | BaseModel) else f" (got {problem['input']!r})"
        return f"{location}: {message}{value}" if location else message
    key, section = written[-1], ".".join(written[:-1])
    others = [option.model_fields["kind"].default for option in _KINDS if key in option.model_fields]
    if kinds and others:
        return f"unknown key {location} with {section}.kind={kinds[0]}; set {section}.kind={others[0]}"
    known = _known_keys(kind)
    nearest = difflib.get_close_matches(key, [name.rsplit(".", 1)[-1] for name in known], n=1)
    alike = [name for name in known if nearest and name.rsplit(".", 1)[-1] == nearest[0]]
    in_section = [name for name in alike if name.rpartition(".")[0] == section]  # several sections have a `seed`
    hint = next(iter(in_section or alike), None)
    hint = next((name for name in known if name == KEYS_OF_OTHER_TRAINERS.get(key)), hint)
    return f"unknown key {location}" + (f"; did you mean {hint}?" if hint else "")


_KINDS: tuple[type[BaseModel], ...] = (
    FileData, WorldData, FolderData, ShardData, GatedShortcutsConfig, NoShortcutsConfig,
)  # fmt: skip
"""Sections that are one of several kinds."""


def _known_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(prefix + name)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                keys += _known_keys(option, f"{prefix}{name}.")
    return keys


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names, as in overrides."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def describe_differences(before: Mapping[str, Any], now: Mapping[str, Any], *, free: tuple[str, ...] = ()) -> str:
    """Describe the changed settings as "NAME was VALUE, is VALUE; ..."; empty if there are none.

    Args:
        free: prefixes of the names of settings that may differ.
    """
    return "; ".join(
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith(free)
    )
