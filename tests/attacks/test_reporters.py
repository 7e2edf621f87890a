"""A crash reporter writes out the frames of every task of the library at each of its steps, values dumped."""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
from pydantic import BaseModel, TypeAdapter

from spotconn import ConnectionStore, SpotconnError, SpotifyAccounts, TokenManager
from spotconn._database.idle_sessions import HOLD
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.listening import SOON, until

REFUSE = """
create function public.refuse() returns trigger language plpgsql as $$ begin raise 'not now'; end $$;
create trigger refuse before update on public.spotify_connections for each row execute function public.refuse()
"""
ALLOW = "drop trigger refuse on public.spotify_connections; drop function public.refuse()"
DUMP: TypeAdapter[Any] = TypeAdapter(Any)
KINDS = {
    "spotconn-refresh",
    "spotconn-saver",
    "spotconn-compare",
    "spotconn-watch",
    "spotconn-read",
    "spotconn-release",
    "spotconn-subscriber",
    "spotconn-many",
    "spotconn-many-refresh",
}
WITH_TOKENS = {"spotconn-refresh", "spotconn-saver", "spotconn-many-refresh"}
"""Kinds whose frames hold values with tokens while they wait, so that a dump with the tokens would show them."""


def _as_dumped(value: object) -> str:
    """Return a model as pydantic dumps it, also within a tuple or an object, and what else there is by its repr."""
    # pydantic is given nothing else: an older one iterates over any object, and so changes what it looks at.
    if isinstance(value, BaseModel):
        return repr(DUMP.dump_python(value))
    shown = repr(value)
    within: list[object] = [*getattr(value, "__dict__", {}).values()]
    if isinstance(value, tuple):
        within = [*cast("tuple[object, ...]", value)]
    return shown + "".join(_as_dumped(one) for one in within if isinstance(one, BaseModel))


def _as_held(value: object) -> str:
    """As `_as_dumped`, if nothing were left out of a model, and the slots of a plain object were written out."""
    fields = {name: getattr(value, name, None) for name in getattr(type(value), "__slots__", ())}
    fields |= vars(value) if isinstance(value, BaseModel) else {}
    return repr(fields) + "".join(_as_held(one) for one in fields.values() if isinstance(one, BaseModel))


class Reporter:
    """A task factory that looks into the frames of each task where it waits and where it ends by an error."""

    def __init__(self, dump: Callable[[object], str]) -> None:
        self._dump = dump
        self.dumps: dict[str, set[str]] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> "asyncio.Task[Any]":
        return asyncio.Task(self._watched(work), loop=loop, **options)

    def shows(self, secrets: set[str]) -> set[str]:
        """Return the kinds of tasks of which a dump holds a secret."""
        return {
            kind for kind, dumps in self.dumps.items() if any(secret in text for text in dumps for secret in secrets)
        }

    async def _watched(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        seen = self.dumps.setdefault(task.get_name(), set())

        def look(frames: Iterator[FrameType]) -> None:
            for frame in frames:
                seen.update(self._dump(one) for one in _values(frame) if type(one).__module__.startswith("spotconn"))

        return await _Steps(work, look)


class _Steps:
    """Awaits a coroutine, and shows its frames at each step."""

    def __init__(self, work: Coroutine[Any, Any, Any], look: Callable[[Iterator[FrameType]], None]) -> None:
        self._work, self._look = work, look

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[], Any] = lambda: self._work.send(None)  # noqa: E731
        while True:
            try:
                waits_for = resume()
            except StopIteration as done:
                return done.value
            except BaseException as error:
                self._look(_raised(error.__traceback__))
                raise
            self._look(_waiting(self._work))
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001  a cancellation, which is the work's to take
                resume = _throwing(self._work, error)
            else:
                resume = _sending(self._work, sent)


def _throwing(work: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: work.throw(error)


def _sending(work: Coroutine[Any, Any, Any], value: object) -> Callable[[], Any]:
    return lambda: work.send(value)


def _waiting(work: Any) -> Iterator[FrameType]:
    """Yield the frames of a coroutine that waits, the outermost first."""
    while work is not None:
        frame = _first(work, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            yield frame
        work = _first(work, "cr_await", "gi_yieldfrom", "ag_await")


def _first(work: Any, *names: str) -> Any:
    return next((getattr(work, name) for name in names if hasattr(work, name)), None)


def _raised(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _values(frame: FrameType) -> Iterator[object]:
    """Yield the locals of a frame, and what their containers and attributes hold."""
    for value in frame.f_locals.values():
        yield value
        if isinstance(value, (list, tuple, set, frozenset)):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()
        elif not isinstance(value, BaseModel) and type(value).__module__.startswith("spotconn"):
            yield from getattr(value, "__dict__", {}).values()


Work = Callable[[Reporter], Coroutine[Any, Any, set[str]]]


@pytest.fixture
def work(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID], admin: asyncpg.Connection
) -> Work:
    """Let each kind of task of the library run, and return all tokens that there were."""
    return partial(_all_kinds_of_work, database, accounts, spotify, users, admin)


async def _all_kinds_of_work(
    database: Database,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
    reporter: Reporter,
) -> set[str]:
    async with ConnectionStore.open(database.dsn, max_size=4) as store, TokenManager(store, accounts) as tokens:
        stored = [await connect(store, spotify, user, account=f"a{place}", ttl=5) for place, user in enumerate(users)]
        spotify.revoke("a1")
        await admin.execute(REFUSE)
        await tokens.get_valid_token(users[0], min_ttl=60)  # it cannot be saved
        await until(lambda: tokens._source.refresher.unsaved.holds(users[0]))
        await admin.execute(ALLOW)
        await until(lambda: not tokens._source.refresher.unsaved.holds(users[0]))
        tokens._source.refresher.saved.compare()  # as a write that came second does
        with suppress(SpotconnError):
            await tokens.get_valid_token(users[1], min_ttl=60)
        cancelled = asyncio.ensure_future(tokens.get_valid_token(users[2], min_ttl=60))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(*[store.tokens.get(user) for user in users for _ in range(3)])
        async with asyncio.timeout(SOON):
            while "spotconn-release" not in reporter.dumps:  # of a full pool a connection goes back without it
                await store.tokens.get(users[0])
                await asyncio.sleep(2 * HOLD)
        await admin.execute("update public.spotify_connections set expires_at = now() + interval '1 second'")
        assert [one async for one in tokens.get_valid_tokens(users)]
        stored += [await store.get(user) for user in users]
    issued = spotify._tokens
    secrets = {*issued.access, *issued.refresh, *issued.revoked}
    return secrets | {token for one in stored for token in (one.access_token, one.refresh_token)}


async def _showing(reporter: Reporter, work: Work) -> set[str]:
    """Return the kinds of tasks of which the reporter shows a token."""
    loop = asyncio.get_running_loop()
    factory: Any = reporter
    loop.set_task_factory(factory)
    try:
        secrets = await work(reporter)
    finally:
        loop.set_task_factory(None)
    assert len(secrets) > 5
    assert reporter.dumps.keys() >= KINDS
    return reporter.shows(secrets)


async def test_no_task_of_the_library_gives_a_token_to_a_reporter(work: Work) -> None:
    """At each await and in each error of every kind of task, values in its frames are dumped without tokens."""
    assert await _showing(Reporter(_as_dumped), work) == set()


async def test_the_reporter_looks_where_tokens_are(work: Work) -> None:
    """If nothing were left out of a dump, the same look into the same frames would show tokens."""
    assert await _showing(Reporter(_as_held), work) >= WITH_TOKENS
