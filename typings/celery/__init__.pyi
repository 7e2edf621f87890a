# What the project uses of Celery, which has no types.
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

class Celery:
    conf: Any
    def __init__(self, main: str, *, broker: str) -> None: ...
    def task(self, function: _F) -> _F: ...
