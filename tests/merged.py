"""Changes of the config values that the tests of one kind start from."""

from typing import Any


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge `changes` into the config values: a dict is merged into its section, any other value replaces the old
    one."""
    sections = {
        name: {**values.get(name, {}), **change} if isinstance(change, dict) else change
        for name, change in changes.items()
    }
    return values | sections
