"""The HTTP library: httpx2 where it is installed, as with the extra `httpx2`, and httpx otherwise.

No other module knows which. A client of the caller's own may be of either, whichever is in use here, so its objects are
compared with the classes of each library that the program has imported. Neither is imported for that.
"""

import math
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

__all__ = [
    "CALLS_PER_CLIENT",
    "IDLE_PER_CLIENT",
    "AsyncClient",
    "Auth",
    "OfEither",
    "PassedStream",
    "classes",
    "library",
]

if TYPE_CHECKING:
    import httpx
    import httpx as library
    import httpx2

    AsyncClient = httpx.AsyncClient | httpx2.AsyncClient
else:
    try:
        import httpx2 as library
    except ModuleNotFoundError:
        import httpx as library

    AsyncClient = Any
    """A client of either library."""

_ON_HTTPX2 = library.__name__ == "httpx2"

CALLS_PER_CLIENT: float = math.inf if _ON_HTTPX2 else 4
"""Calls under way at once that one client should take.

For each call httpcore looks at every connection of its pool, again for every waiting call, so its pools have to be
small. httpcore2 goes through them once.
"""
IDLE_PER_CLIENT: int | None = 20 if _ON_HTTPX2 else None
"""Idle connections that stay open; None for all. With each call httpcore2 makes a system call for each of them."""


def classes(*names: str) -> tuple[type[Any], ...]:
    """Return the classes of these names, of each library that the program has imported."""
    modules = [library, sys.modules.get("httpx"), sys.modules.get("httpx2")]
    # Another thread may be importing one just now: of what is not there yet nobody has an object.
    found = (getattr(module, name, None) for module in modules for name in names)
    return tuple(dict.fromkeys(kind for kind in found if kind is not None))


class OfEither:
    """Passes for an object of each library, also of one that is imported later.

    Clients accept instances of their own classes only; isinstance() asks for `__class__`.

    Attributes:
        counterpart: the name of the class in both libraries.
    """

    counterpart: ClassVar[str]

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            """Return a class that is derived from all that this passes for."""
            return _derived(type(self), classes(self.counterpart))


@cache
def _derived(kind: type, bases: tuple[type, ...]) -> type:
    return type(kind.__name__, (kind, *bases), {"__module__": kind.__module__, "__doc__": kind.__doc__})


class PassedStream(OfEither):
    """A stream of a response that is passed on as it is; classes derived from it do more.

    Args:
        stream: of a client.
    """

    counterpart = "AsyncByteStream"

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the stream."""
        return aiter(self._stream)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    @property
    def elapsed(self) -> Any:
        """How long the response took, which httpx2 asks its stream for."""
        return getattr(self._stream, "elapsed", None)


if TYPE_CHECKING:

    class Auth(httpx.Auth, httpx2.Auth):
        """What authenticates requests of clients of either library."""

        def auth_flow(self, request: Any) -> Generator[Any, Any, None]: ...
        def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]: ...
        def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]: ...
else:

    class Auth(OfEither):
        """What authenticates requests of clients of either library."""

        counterpart = "Auth"
