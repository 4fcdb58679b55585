"""Packages that only some jobs need, which an extra of ovd installs."""

from importlib import import_module
from types import ModuleType


def optional(module: str, extra: str) -> ModuleType:
    """Import a module of a package that comes with an extra.

    Args:
        module: such as "starlette.applications".
        extra: its name in pyproject.toml, such as "serve".

    Raises:
        ValueError: the package is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is there, and lacks something itself
        package = module.partition(".")[0]
        raise ValueError(f"this {needs_package(package, extra)}") from error


def needs_package(package: str, extra: str) -> str:
    """What a message says of a package that is not installed, after the name of what needs it."""
    return f"needs the package {package}: pip install 'ovd[{extra}]'"
