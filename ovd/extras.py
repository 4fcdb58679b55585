"""Import of optional packages, which the extras of ovd install."""

from importlib import import_module
from types import ModuleType


def optional(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: name of the module, such as "starlette.applications".
        extra: name of the extra in pyproject.toml, such as "serve".

    Raises:
        ValueError: the package is not installed; the message has the command to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is installed, but one of its own imports is missing
        package = module.partition(".")[0]
        raise ValueError(f"this {needs_package(package, extra)}") from error


def needs_package(package: str, extra: str) -> str:
    """Return the words of a message about a missing package, which follow the name of the feature that needs it."""
    return f"needs the package {package}: pip install 'ovd[{extra}]'"
