"""Reading YAML of plain data, without tags, aliases and duplicate keys."""

from pathlib import Path
from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 50


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping; keys of nested mappings may be of any plain type.

    Raises:
        ValueError: the file cannot be read, is too long, or is not a mapping of plain values; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    values = read_value(text, str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, not {type(values).__name__}")
    return values


def read_value(text: str, source: str) -> Any:
    """Read a plain value from YAML text.

    Args:
        source: name of the text in errors.

    Raises:
        ValueError: the text is too long, nested too deeply, or not a plain value.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{source} has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            # Aliases can make a few lines expand without bound, and plain data do not need them.
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{source}: YAML aliases (*name) are not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # PyYAML's time grows with the square of the depth
                raise ValueError(f"{source}: not plain YAML: nested more than {MAX_DEPTH} deep")
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{source}: not plain YAML: {error}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader with an error for duplicate keys, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, str | int) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", key_node.start_mark
                )
            seen |= {key} if isinstance(key, str | int) else set()
        return super().construct_mapping(node, deep=deep)
