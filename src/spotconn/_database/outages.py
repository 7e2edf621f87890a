"""Whether the database is away, as the calls of one pool find it, and when it is back."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from spotconn._database.idle_sessions import Session
from spotconn.errors import DatabaseUnavailable


class Outages:
    """Notes how blocks with a connection end.

    Args:
        on_return: called when one succeeds after another has found the database away.
    """

    def __init__(self, on_return: Callable[[], None]) -> None:
        self._on_return = on_return
        self._away = False

    def watch(self, session: AbstractAsyncContextManager[Session]) -> AbstractAsyncContextManager[Session]:
        """Return the same context manager, whose end is noted."""
        return _Watched(session, self._ended)

    def _ended(self, error: BaseException | None) -> None:
        """Handle that a block has ended, or that there was no connection for it."""
        if isinstance(error, DatabaseUnavailable):
            self._away = self._away or not error.locked
        elif error is None and self._away:
            self._away = False
            self._on_return()


class _Watched(AbstractAsyncContextManager[Session]):
    """The same as another context manager, whose end is reported.

    Args:
        session: the other one.
        ended: is called with the error, if there is one.
    """

    def __init__(
        self, session: AbstractAsyncContextManager[Session], ended: Callable[[BaseException | None], None]
    ) -> None:
        self._session = session
        self._ended = ended

    async def __aenter__(self) -> Session:
        """Enter the other."""
        try:
            return await self._session.__aenter__()
        except BaseException as error:
            self._ended(error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Exit the other, and report."""
        await self._session.__aexit__(kind, error, trace)
        self._ended(error)
