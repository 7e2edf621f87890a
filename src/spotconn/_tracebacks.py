"""No secret in the local variables of a traceback, and no error that belongs to two callers.

Crash reporters record the locals of each frame. So an error leaves a public call without the frames of this library
and of the packages that it hands tokens to: its traceback begins at the public call and goes on in the caller's own
code (a cipher, an iterator). Frames are left out, never cleared: a frame may still run, or belong to somebody else.
"""

import asyncio
import copy
import inspect
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from types import FrameType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast

_C = TypeVar("_C")
_E = TypeVar("_E", bound=BaseException)
_P = ParamSpec("_P")
_T = TypeVar("_T")

_HIDDEN = frozenset(
    {"spotconn", "asyncpg", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio", "pydantic", "tenacity"}
)
"""Packages whose frames may hold a token or a secret."""
_EXEMPT = "__exempt_from_scrubbing__"


def scrub(error: BaseException, handled: BaseException | None = None) -> None:
    """Leave the frames of the library out of the traceback of an error, of its causes and of its contexts.

    Args:
        error: about to leave the library.
        handled: what the caller was handling when the call began. It is the end of the chain and stays as it is.
    """
    waiting: list[BaseException | None] = [error]
    seen = {id(handled)}
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.__traceback__ = _visible(link.__traceback__)
        waiting += [link.__cause__, link.__context__]


def renewed(error: _E) -> _E:
    """Return a new error like this one, without its traceback, context and notes."""
    again = copy.copy(error)
    vars(again).pop("__notes__", None)
    return again


class Failure:
    """An error as the value that shared work ends in.

    Args:
        error: what the work has raised. Its own object is raised no more.
    """

    def __init__(self, error: Exception) -> None:
        self._trace = _visible(error.__traceback__)
        self._error: Exception
        try:
            self._error = renewed(error)
        except Exception:  # noqa: BLE001  a class of the caller's that does not copy
            self._error = RuntimeError(f"shared work ended with {type(error).__name__}")

    def __str__(self) -> str:
        """Return the class, and the text of an error of the library: that of any other may hold a secret."""
        kind = type(self._error)
        return f"{kind.__name__}: {self._error}" if kind.__module__.startswith("spotconn.") else kind.__name__

    def is_a(self, kind: type[Exception]) -> bool:
        """Return whether the error is of a class."""
        return isinstance(self._error, kind)

    def renewed(self) -> Exception:
        """Return an error for one of those who wait: an object of its own, with what is visible of the traceback."""
        return renewed(self._error).with_traceback(self._trace)


def scrubbed(cls: type[_C]) -> type[_C]:
    """Scrub what leaves the constructor and the public methods of a class. Class decorator."""
    for name, value in list(vars(cls).items()):
        if name == "__init__" or (inspect.isfunction(value) and not name.startswith("_")):
            setattr(cls, name, _scrubbed(value))
        elif isinstance(value, classmethod):
            function = cast("classmethod[Any, ..., Any]", value).__func__
            setattr(cls, name, classmethod(_scrubbed(function)))
    return cls


def scrubbed_method(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Scrub what leaves a method."""
    return cast("Callable[_P, _T]", _scrubbed(method))


def exempt(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Leave a method as it is: its locals hold no secret where an error passes through."""
    setattr(function, _EXEMPT, True)
    return function


def scrubbed_context(
    function: Callable[_P, AsyncGenerator[_T]],
) -> Callable[_P, AbstractAsyncContextManager[_T]]:
    """Make a context manager of `function`, and scrub what is raised on the way into its block and out of it."""
    make = asynccontextmanager(function)

    @wraps(function)
    def entered(*args: _P.args, **kwargs: _P.kwargs) -> AbstractAsyncContextManager[_T]:
        return _ScrubbedContext(make(*args, **kwargs))

    return exempt(entered)


class _ScrubbedContext(AbstractAsyncContextManager[_T], Generic[_T]):
    """What is raised inside the block is the caller's and stays as it is."""

    def __init__(self, manager: AbstractAsyncContextManager[_T]) -> None:
        self._manager = manager

    async def __aenter__(self) -> _T:
        handled = sys.exception()
        try:
            return await self._manager.__aenter__()
        except BaseException as error:
            scrub(error, handled)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        handled = sys.exception()
        try:
            return await self._manager.__aexit__(kind, error, trace)
        except BaseException as raised:
            if raised is not error:
                scrub(raised, handled)
            raise


def _scrubbed(method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(inspect.unwrap(method)) or hasattr(method, _EXEMPT):
        return method
    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            handled = sys.exception()
            try:
                return await method(*args, **kwargs)
            except BaseException as error:
                del args, kwargs
                scrub(error, handled)
                if isinstance(error, Exception):
                    # A caller that insists (`while True: try: ... except`) must not keep the event loop to itself.
                    await asyncio.sleep(0)
                raise

        return awaited

    @wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        handled = sys.exception()
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            scrub(error, handled)
            raise

    return called


def _visible(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback of the entries that hide nothing; none of the given ones is changed."""
    entries: list[TracebackType] = []
    while trace is not None:
        if not _is_hidden(trace.tb_frame):
            entries.append(trace)
        trace = trace.tb_next
    visible: TracebackType | None = None
    for entry in reversed(entries):
        visible = TracebackType(visible, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return visible


def _is_hidden(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _HIDDEN
