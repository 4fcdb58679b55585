"""Changes of a config's values, which tests of one kind start from."""

from typing import Any


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """What `changes` says of a section is merged into it; any other value is put in its place."""
    sections = {
        name: {**values.get(name, {}), **change} if isinstance(change, dict) else change
        for name, change in changes.items()
    }
    return values | sections
