"""Connections that were lost or cannot be had, statements that conflict, and hooks of the caller's that fail."""

import asyncio
import errno
import itertools
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConfigurationError,
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    NotConnected,
    Profile,
)
from spotconn._database.unreachable import unreachable
from support.connections import grant
from support.database import Database

ALICE = Profile(spotify_user_id="alice")
END_ALL = "select pg_terminate_backend(pid, 1000) from pg_stat_activity where usename = 'app'"


def cut_all(database: Database) -> None:
    """Let the server end all sessions while the event loop of the test stands still, so that nobody has noticed."""

    async def cut() -> None:
        connection = await asyncpg.connect(database.admin_dsn)
        await connection.execute(END_ALL)
        await connection.close()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, cut()).result()


async def warmed(stack: AsyncExitStack, dsn: str, size: int) -> ConnectionStore:
    """A store with as many open connections."""
    store = await stack.enter_async_context(ConnectionStore.open(dsn, min_size=size, max_size=size))
    assert store.pool._pool.get_size() == size
    return store


READS: dict[str, Callable[[ConnectionStore, UUID], Awaitable[object]]] = {
    "get": lambda store, user: store.get(user),
    "get_many": lambda store, user: store.get_many([user]),
    "tokens": lambda store, user: store.tokens.get(user),
    "many tokens": lambda store, user: store.tokens.get_many([user]),
    "verify": lambda store, _: store.verify(),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("together", [False, True])
async def test_no_read_fails_of_a_connection_that_was_cut_while_it_waited(
    database: Database, user: UUID, name: str, *, together: bool
) -> None:
    """All connections of the pool are cut by the server at once; of 30 reads after that none fails."""
    async with AsyncExitStack() as stack:
        store = await warmed(stack, database.dsn, 4)
        await store.save(user, grant("x"), ALICE)
        for _ in range(3):
            cut_all(database)
            if together:
                await asyncio.gather(*(READS[name](store, user) for _ in range(30)))
            else:
                for _ in range(30):
                    await READS[name](store, user)


@pytest.mark.parametrize("name", READS)
async def test_the_first_read_does_not_fail_either(
    database: Database, user: UUID, store: ConnectionStore, name: str
) -> None:
    """A pool of the caller's whose connections were cut before the store has looked at one."""
    await store.save(user, grant("x"), ALICE)
    async with asyncpg.create_pool(database.dsn, min_size=4, max_size=4) as pool:
        cut_all(database)
        await READS[name](ConnectionStore(pool), user)


async def test_a_write_is_never_repeated_after_its_connection_was_lost(
    database: Database, user: UUID, admin: asyncpg.Connection
) -> None:
    """It may have been carried out: its caller hears of it, and decides."""
    async with AsyncExitStack() as stack:
        store = await warmed(stack, database.dsn, 1)
        held = await asyncpg.connect(database.admin_dsn)
        await held.execute("begin; lock table public.spotify_connections")
        saving = asyncio.create_task(store.save(user, grant("x"), ALICE))
        async with asyncio.timeout(10):
            while not await admin.fetchval("select exists (select from pg_locks where not granted)"):
                await asyncio.sleep(0.01)
        await admin.execute(END_ALL)
        await held.close()
        with pytest.raises(DatabaseUnavailable):
            await saving
        with pytest.raises(NotConnected):
            await store.get(user)


async def test_a_connection_that_is_lost_as_it_is_released_takes_nothing_back(
    database: Database, user: UUID, admin: asyncpg.Connection
) -> None:
    """A pool of the caller's resets each connection; what was saved before is not told to be lost."""

    async def reset(connection: asyncpg.Connection) -> None:
        await admin.execute(END_ALL)
        await connection.execute(connection.get_reset_query())

    async with asyncpg.create_pool(database.dsn, min_size=1, max_size=1, reset=reset) as pool:
        store = ConnectionStore(pool)
        await store.save(user, grant("x"), ALICE)
        assert (await store.get(user)).access_token == "access-x"
        async with store.as_user(user) as connection:
            await connection.execute("select 1")


async def test_a_pool_in_use_and_a_database_that_is_away_are_told_apart(database: Database, user: UUID) -> None:
    """Who waits for a connection of others hears that; who waits for a silent server hears that, beside others too."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ports = itertools.chain([database.server.port], itertools.repeat(silent.getsockname()[1]))

        async def connect(*args: Any, **options: Any) -> asyncpg.Connection:
            dsn = database.dsn.replace(f":{database.server.port}/", f":{next(ports)}/")
            return await asyncpg.connect(dsn, **options)

        for size, text in (
            (1, r"no connection of the pool was free within 0\.2 s: raise max_size, which is 1"),
            (2, "did not answer in time"),
        ):
            ports = itertools.chain([database.server.port], itertools.repeat(silent.getsockname()[1]))
            pool = await asyncpg.create_pool(connect=connect, min_size=1, max_size=size)
            try:
                store = ConnectionStore(pool)
                async with store.as_user(user):
                    store.pool.timeout = 0.2
                    with pytest.raises(DatabaseUnavailable, match=text):
                        await store.get(user)
            finally:
                pool.terminate()


class ExpiredCredentials(Exception):
    """Of a client of a cloud."""


@pytest.mark.parametrize("kind", [ExpiredCredentials, ValueError, TypeError, OSError, KeyError])
async def test_what_a_password_callable_raises_is_an_error_of_the_library(
    database: Database, user: UUID, kind: type[Exception]
) -> None:
    """At open, and later, in the caller's own pool too; the class is named and the text is not."""
    failing = True

    async def password() -> str:
        if failing:
            raise kind("marked")
        return "app"

    dsn = database.dsn.replace(":app@", "@")
    text = rf"has raised {kind.__name__}"
    for opened in (ConnectionStore.open, ConnectionAdmin.open):
        with pytest.raises(DatabaseUnavailable, match=text) as raised:
            await opened(dsn, password=password).__aenter__()
        assert "marked" not in repr((raised.value, raised.value.__cause__, raised.value.__context__))
    failing = False
    async with ConnectionStore.open(dsn, password=password) as store:
        failing = True
        await store.pool._pool.expire_connections()
        with pytest.raises(DatabaseUnavailable, match=text):
            await store.get(user)
        failing = False
        with pytest.raises(NotConnected):
            await store.get(user)


@pytest.mark.parametrize("hook", ["connect", "init", "setup", "password"])
async def test_what_a_hook_of_the_callers_pool_raises_is_an_error_of_the_library(
    database: Database, user: UUID, hook: str
) -> None:
    """Whatever it is; a cancellation passes."""
    raised: list[BaseException] = [ExpiredCredentials("marked"), asyncio.CancelledError()]

    def failing(*_args: object, **_options: object) -> Any:
        async def fail() -> None:
            raise raised[0]

        return fail()

    hooks: dict[str, Any] = {hook: failing}
    async with asyncpg.create_pool(database.dsn, min_size=0, max_size=1, **hooks) as pool:
        store = ConnectionStore(pool)
        with pytest.raises(DatabaseUnavailable, match="has raised ExpiredCredentials") as found:
            await store.get(user)
        assert found.value.__cause__ is found.value.__context__ is None
        raised.pop(0)
        with pytest.raises(asyncio.CancelledError):
            await store.get(user)


async def test_a_host_that_is_unknown_is_a_setting_at_first_and_passes_later(database: Database, user: UUID) -> None:
    """Once it was known, the name service is at fault."""
    unknown = database.dsn.replace("127.0.0.1", "spotconn.invalid")
    with pytest.raises((ConfigurationError, DatabaseUnavailable), match="name") as raised:
        await ConnectionStore.open(unknown).__aenter__()
    if "does not answer" not in str(raised.value):  # no resolver here
        assert isinstance(raised.value, ConfigurationError)
        assert "host name of the database URL is not known" in str(raised.value)
    pool = asyncpg.create_pool(unknown, min_size=0)
    async with pool:
        with pytest.raises(DatabaseUnavailable, match="gaierror"):
            await ConnectionStore(pool).get(user)


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH])
def test_a_network_without_ipv6_is_named(number: int) -> None:
    """What an address of IPv6 alone gives there passes by itself no more than it shows itself: the text asks for it."""
    failure = unreachable(OSError(number, "that host"))
    assert isinstance(failure, DatabaseUnavailable)
    assert "is its address one of IPv6, and this network IPv4?" in str(failure)
