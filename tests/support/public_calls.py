"""The public calls of the library, for tests that must drive each of them."""

import inspect
from types import ModuleType

import spotconn


def public_calls(package: ModuleType = spotconn) -> set[str]:
    """Every public method, and constructor with a body, of the classes that do something."""
    found = set[str]()
    for name in package.__all__:
        thing = getattr(package, name)
        if not inspect.isclass(thing) or issubclass(thing, Exception) or hasattr(thing, "model_fields"):
            continue
        if getattr(thing, "_is_protocol", False) or hasattr(thing, "__members__"):
            continue
        for method, value in vars(thing).items():
            if isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value):
                found.add(f"{name}.{method}")
    return {call for call in found if not call.partition(".")[2].startswith("_")}
