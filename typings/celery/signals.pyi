# What the project uses of Celery's signals.
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

class Signal:
    def connect(self, function: _F) -> _F: ...

worker_process_shutdown: Signal
