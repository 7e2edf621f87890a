"""What callers hand to a pool to be called: whatever it raises is an error of the library."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from spotconn._database.unreachable import DRIVER_ERRORS, hook_failure
from spotconn.errors import DatabaseUnavailable

_HOOKS = ("connect", "init", "reset", "setup")


def mapped_hooks(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a pool, whose password callable and hooks raise DatabaseUnavailable in place of any error.

    Hooks may speak to the server, so the errors of asyncpg leave them as they are, and are mapped like all of its own.
    """
    hooks = {name: _mapped(options[name], DRIVER_ERRORS) for name in _HOOKS if callable(options.get(name))}
    if callable(options.get("password")):
        hooks["password"] = _mapped(options["password"], ())
    return options | hooks


def _mapped(hook: Callable[..., Any], passed: tuple[type[Exception], ...]) -> Callable[..., Any]:
    @wraps(hook)
    async def called(*args: Any, **options: Any) -> Any:
        failure: DatabaseUnavailable
        try:
            answer = hook(*args, **options)
            return await answer if inspect.isawaitable(answer) else answer
        except passed:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is
            failure = hook_failure(error)
        raise failure

    return called
