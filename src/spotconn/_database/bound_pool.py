"""Statements on a pool, in bounded time and only in the process and event loop that the pool belongs to."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from spotconn._affinity import Affinity
from spotconn._database.acquire import TIMEOUT, acquire
from spotconn._database.given_up import GivenUp
from spotconn._database.idle_sessions import IdleSessions, Session, is_open
from spotconn._database.outages import Outages
from spotconn._database.pool import close_pool
from spotconn._database.repetition import LEAST, answer
from spotconn._database.row_owners import check_users
from spotconn._database.server_leaving import ServerLeaving
from spotconn._database.value_types import check_types
from spotconn._database.write_queues import WriteQueues
from spotconn._observer import NOBODY, Observer
from spotconn._stopwatch import Stopwatch
from spotconn.errors import DatabaseUnavailable

_T = TypeVar("_T")


class BoundPool:
    """The pool of one object of the library, in its own process and event loop and in bounded time.

    Args:
        pool: closed by `close` only.
        name: of the object, for errors.
        timeout: seconds to wait for a connection, and again for the answer to a statement.

    Attributes:
        timeout: as given.
        affinity: the process and the event loop that the pool belongs to.
        observer: is notified of waits for a connection.
        leaving: leaves the server that the sessions lead to.
        on_leave: is called when all connections of a server were left. It must neither block nor raise.
        checked: whether the pool is known to have no codecs that change values.
        given_up: connections that failed, and are being ended on the server.
        on_return: is called when a statement succeeds again after the database was away.
    """

    def __init__(self, pool: asyncpg.Pool, *, name: str, timeout: float = TIMEOUT) -> None:
        self._pool = pool
        self._name = name
        self.timeout: float = timeout
        # asyncpg has no public API for the event loop of a pool.
        loop = getattr(pool, "_loop", None)
        self.affinity: Affinity = Affinity(name, loop=loop, transports=self._transports, after_fork=self.terminate)
        self.observer: Observer = NOBODY
        self._idle = IdleSessions(pool, timeout=timeout)
        self.on_leave: Callable[[], None] = _do_nothing
        self.leaving: ServerLeaving = ServerLeaving(pool, self._idle, self._notify_leave)
        self._writes = WriteQueues()
        self.given_up: GivenUp = GivenUp()
        self.checked: bool = False
        self.on_return: Callable[[], None] = _do_nothing
        self._outages = Outages(self._notify_return)

    def beside(self) -> "BoundPool":
        """Return the same pool for another purpose: with an observer and a state of its own, at the same server."""
        other = BoundPool(self._pool, name=self._name, timeout=self.timeout)
        other.leaving = self.leaving
        return other

    def acquire(
        self, *, reuse: bool = False, seconds: float | None = None, once: bool = False
    ) -> AbstractAsyncContextManager[Session]:
        """Context manager: acquire a connection and release it at the end of the block.

        Args:
            reuse: whether the next block may have it first. Nothing may be left behind in it.
            seconds: to wait for it; None for `timeout`.
            once: whether to end it after the block, however that ends.

        Raises:
            RuntimeError: in another process or event loop.
            DatabaseUnavailable: none was free, or could be opened, in time.
            ConfigurationError: codecs of the pool change values; looked at once.
        """
        check = None if self.checked else self._check
        return self._acquire(reuse=reuse, seconds=seconds, once=once, check=check)

    def _acquire(
        self,
        *,
        reuse: bool,
        seconds: float | None = None,
        once: bool = False,
        check: Callable[[Session], Awaitable[None]] | None = None,
    ) -> AbstractAsyncContextManager[Session]:
        self.affinity.check()
        session = acquire(
            self._pool,
            seconds=self.timeout if seconds is None else seconds,
            observer=self.observer,
            idle=self._idle,
            reuse=reuse,
            leaving=self.leaving,
            check=check,
            given_up=self.given_up,
            once=once,
        )
        return self._outages.watch(session)

    async def leave_server(self) -> None:
        """Use no session again that is open now: a server that they lead to is not the one that takes writes.

        Those that nobody uses are closed at once, those in use when they are released.
        """
        await self.leaving.leave()

    async def _check(self, session: Session) -> None:
        await check_types(session, seconds=self.timeout)
        self.checked = True

    def _notify_leave(self) -> None:
        self.on_leave()

    def _notify_return(self) -> None:
        self.on_return()

    async def value(self, query: str, *, check: Callable[[Session, Any], None] | None = None) -> Any:
        """Return the first value of the first row of a read.

        Args:
            query: of it.
            check: gets the connection, too; raises an error of the library for what the server must not answer.
        """

        async def read(session: Session) -> Any:
            found = await answer(
                session, query, lambda seconds: session.fetchval(query, timeout=seconds), seconds=self.timeout
            )
            if check is not None:
                check(session, found)
            return found

        return await self.leaving.repeated(lambda: self.read(read))

    async def row_of(
        self,
        user_id: UUID | None,
        query: str,
        *args: object,
        read: bool = False,
        ahead: bool = False,
        queue: Hashable = None,
        session: "Session | None" = None,
    ) -> asyncpg.Record | None:
        """Return the first row of a statement about one user, who is its first argument and its column `user_id`.

        All that are no reads wait for each other, at most `timeout` seconds and before they acquire a connection.

        Args:
            user_id: of that user; None where nobody is known.
            query: the statement.
            args: further ones of it. A stopwatch is read once a connection has been acquired.
            read: whether the statement changes nothing, so that it may be repeated on another connection.
            ahead: whether it comes before the writes of the user that wait already.
            queue: what waits for each other where no user is known.
            session: one of this pool that the caller has acquired, for a write that waits for no other then.

        Raises:
            DatabaseUnavailable: its turn did not come in time; and as `acquire`.
            RowSecurityError: the row belongs to another user.
        """

        async def ask(session: Session, seconds: float = self.timeout) -> asyncpg.Record | None:
            def begin(seconds: float) -> Awaitable[asyncpg.Record | None]:
                values = [arg.elapsed if isinstance(arg, Stopwatch) else arg for arg in args]
                return session.fetchrow(query, user_id, *values, timeout=seconds)

            row = await answer(session, query, begin, seconds=seconds)
            if row is not None:
                check_users(session, {row["user_id"]} <= {user_id, None})
            return row

        if session is not None:  # to wait with it for one that waits for a connection would take the whole time
            return await ask(session)
        if read:
            return await self.read(ask)
        self.affinity.check()  # else a child of fork would wait for its parent's writes
        async with self._writes.turn(user_id or queue, seconds=self.timeout, ahead=ahead):
            return await self._write(ask)

    async def _write(self, use: Callable[[Session, float], Awaitable[_T]]) -> _T:
        """Return the result of a write, which is repeated on a new connection where its server takes none.

        Args:
            use: writes with a connection, in so many seconds.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * self.timeout  # of the wait for a connection and that for the answer

        def remaining() -> float:
            return min(self.timeout, max(end - loop.time(), LEAST))

        async def attempt() -> _T:
            async with self.acquire(seconds=remaining()) as session:
                return await use(session, remaining())

        return await self.leaving.repeated(attempt)

    async def rows_of(self, user_ids: list[UUID], query: str, *, reuse: bool = False) -> list[asyncpg.Record]:
        """Return the rows of a read about several users, who are its argument and its column `user_id`.

        Args:
            user_ids: of those users.
            query: the statement; takes them as text.
            reuse: as in `acquire`.

        Raises:
            RowSecurityError: a row belongs to another user.
        """
        return await self.read(lambda session: self.fetch(session, query, user_ids), reuse=reuse)

    async def fetch(self, session: Session, query: str, user_ids: list[UUID]) -> list[asyncpg.Record]:
        """Return the same as `rows_of`, through a session of this pool."""
        texts = [str(user_id) for user_id in user_ids]
        rows = await answer(
            session, query, lambda seconds: session.fetch(query, texts, timeout=seconds), seconds=self.timeout
        )
        check_users(session, {row["user_id"] for row in rows} <= set(user_ids))
        return rows

    async def read(self, use: Callable[[Session], Awaitable[_T]], *, reuse: bool = False) -> _T:
        """Return the result of a read, which is repeated on another connection where its own turns out to be lost.

        Connections are cut while they wait in the pool: by idle_session_timeout, a restarted server, a firewall. So all
        that are open now may be lost, and no more; one that is new is not repeated.

        Args:
            use: reads with a connection.
            reuse: as in `acquire`.
        """

        async def checked(session: Session) -> _T:
            if not self.checked:  # here, because the check may be what meets the lost connection
                await self._check(session)
            return await use(session)

        loop = asyncio.get_running_loop()
        end = loop.time() + self.timeout
        for _ in range(self._pool.get_size()):
            lost = False
            try:
                async with self._acquire(reuse=reuse) as session:
                    try:
                        return await checked(session)
                    except DatabaseUnavailable:
                        lost = not is_open(session) and loop.time() < end
                        raise
            except DatabaseUnavailable:
                if not lost:
                    raise
        async with self._acquire(reuse=reuse) as session:
            return await checked(session)

    def terminate(self) -> None:
        """Close all connections at once, and open no new ones. In a child of fork this does not reach the parent's."""
        self._pool.terminate()

    async def end(self) -> None:
        """Give up all connections, and open no new ones. In a child of fork close them at once."""
        if self.affinity.forked:
            self.terminate()
        else:
            await close_pool(self._pool, seconds=0)

    async def close(self) -> None:
        """Close the pool. In a child of fork do nothing: the connections are the parent's.

        Raises:
            RuntimeError: in another event loop.
        """
        if self.affinity.close():
            self._writes.close()
            await self._idle.aclose()
            try:
                await close_pool(self._pool, seconds=self.timeout)
            finally:
                await self.given_up.aclose()

    def _transports(self) -> list[Any]:
        """Return the transports of all connections, also where the caller made the pool."""
        # asyncpg has no public API for them.
        sessions = [getattr(holder, "_con", None) for holder in getattr(self._pool, "_holders", ())]
        return [getattr(session, "_transport", None) for session in sessions]


def _do_nothing() -> None:
    """Do nothing."""
