"""No secret in the local variables of a traceback.

Crash reporters record the locals of every frame. An error that leaves the library keeps its frames, files and lines,
but what the library's own variables held (tokens, codes, keys, rows, settings) is forgotten.
"""

import inspect
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast

_C = TypeVar("_C")
_P = ParamSpec("_P")
_T = TypeVar("_T")

_MARK = "__guarded__"


def forget_locals(error: BaseException) -> None:
    """Clear the frames that an error, its causes and contexts have left; those that still run are untouched."""
    waiting: list[BaseException | None] = [error]
    seen = set[int]()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        waiting += [one.__cause__, one.__context__]


def guarded(cls: type[_C]) -> type[_C]:
    """A class whose constructor and public methods let no error out with their locals."""
    for name, value in list(vars(cls).items()):
        if name == "__init__" or (inspect.isfunction(value) and not name.startswith("_")):
            setattr(cls, name, _guarded(value))
        elif isinstance(value, classmethod):
            function = cast("classmethod[Any, ..., Any]", value).__func__
            setattr(cls, name, classmethod(_guarded(function)))
    return cls


def guarded_method(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """A method that lets no error out with its locals."""
    return cast("Callable[_P, _T]", _guarded(method))


def guarded_within(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Tells `guarded` that a method needs no guard: its locals hold no secret where an error passes through."""
    setattr(function, _MARK, True)
    return function


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(inspect.unwrap(method)) or hasattr(method, _MARK):
        return method
    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            try:
                return await method(*args, **kwargs)
            except BaseException as error:
                del args, kwargs
                forget_locals(error)
                raise

        return awaited

    @wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            forget_locals(error)
            raise

    return called


def guarded_context(
    function: Callable[_P, AsyncGenerator[_T]],
) -> Callable[_P, AbstractAsyncContextManager[_T]]:
    """As `contextlib.asynccontextmanager`; an error on the way into the block leaves without locals."""
    make = asynccontextmanager(function)

    @wraps(function)
    def entered(*args: _P.args, **kwargs: _P.kwargs) -> AbstractAsyncContextManager[_T]:
        return _Entering(make(*args, **kwargs))

    return guarded_within(entered)


class _Entering(AbstractAsyncContextManager[_T], Generic[_T]):
    """Guards the way in; what is raised inside the block is the caller's and keeps its locals."""

    def __init__(self, manager: AbstractAsyncContextManager[_T]) -> None:
        self._manager = manager

    async def __aenter__(self) -> _T:
        try:
            return await self._manager.__aenter__()
        except BaseException as error:
            forget_locals(error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, trace)
