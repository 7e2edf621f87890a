"""Work for several callers runs in a context of its own: a first caller's trace and identity are not in it."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any
from uuid import UUID

import asyncpg

from spotconn import ConnectionStore, TokenManager
from spotconn.accounts import SpotifyAccounts
from spotconn.events import Event
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database

FIRST = ContextVar[str | None]("first_caller", default=None)
OF_ONE_CALLER = {"spotconn-refresh"}
"""Tasks that are a part of the trace of the call that has started them, which is documented: about one user's token."""
OF_LIBRARY = "spotconn-", "SharedReads.", "IdleSessions.", "on_event"
REFUSE = """
create function public.refuse() returns trigger language plpgsql as $$ begin raise 'not now'; end $$;
create trigger refuse before update on public.spotify_connections for each row execute function public.refuse()
"""
ALLOW = "drop trigger refuse on public.spotify_connections; drop function public.refuse()"


class Recorder:
    """Records in which context tasks and timers of the library run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._seen: dict[str, set[str | None]] = {}
        self._tasks: list[tuple[asyncio.Task[Any], str | None]] = []
        factory: Any = self._task
        loop.set_task_factory(factory)
        self._call_at: Callable[..., asyncio.TimerHandle] = loop.call_at
        setattr(loop, "call_at", self._at)  # noqa: B010  strict types forbid to assign a method

    @property
    def seen(self) -> dict[str, set[str | None]]:
        """The values of `FIRST`, by task or timer."""
        for task, value in self._tasks:  # which have their names only after they are made
            self._seen.setdefault(task.get_name(), set()).add(value)
        return {name: seen for name, seen in self._seen.items() if name.startswith(OF_LIBRARY)}

    def note(self, name: str, context: Context) -> None:
        self._seen.setdefault(name, set()).add(context.get(FIRST))

    def _task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> "asyncio.Task[Any]":
        task = asyncio.Task(coroutine, loop=loop, **options)
        context: Context | None = options.get("context")
        self._tasks.append((task, (copy_context() if context is None else context).get(FIRST)))
        return task

    def _at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if str(getattr(callback, "__module__", "")).startswith("spotconn"):
            self.note(getattr(callback, "__qualname__", "timer"), copy_context() if context is None else context)
        return self._call_at(when, callback, *args, context=context)


async def test_no_shared_work_runs_in_the_context_of_its_first_caller(
    database: Database,
    spotify: FakeSpotify,
    accounts: SpotifyAccounts,
    users: list[UUID],
    admin: asyncpg.Connection,
) -> None:
    """Shared reads, connections that go back, the saver, the comparison, the listener, their timers and the hook."""
    recorder = Recorder(asyncio.get_running_loop())
    hooked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hook(event: Event) -> None:
        recorder.note("on_event", copy_context())
        loop.call_soon_threadsafe(hooked.set)

    async def until(name: str) -> None:
        async with asyncio.timeout(20):
            while name not in recorder.seen:
                await asyncio.sleep(0.01)

    async with (
        ConnectionStore.open(database.dsn, max_size=4) as store,
        TokenManager(store, accounts, on_event=hook) as tokens,
    ):
        for user in users:
            await connect(store, spotify, user, account=str(user))
        await connect(store, spotify, users[0], account=str(users[0]), ttl=-1)
        FIRST.set("the first caller")
        await admin.execute(REFUSE)
        await tokens.get_valid_token(users[0])  # it cannot be saved
        await until("spotconn-saver")
        await admin.execute(ALLOW)
        await asyncio.gather(*[tokens.get_valid_token(user) for user in users for _ in range(3)])
        await store.tokens.get(users[1])
        await asyncio.gather(*[store.tokens.get(user) for user in users for _ in range(3)])
        await until("spotconn-read")
        await until("spotconn-release")
        async with asyncio.timeout(20):
            while tokens._source.refresher.unsaved.holds(users[0]):
                await asyncio.sleep(0.01)
        tokens._source.refresher.saved.compare()  # as a write that came second does
        await hooked.wait()
    shared = {name: seen for name, seen in recorder.seen.items() if name not in OF_ONE_CALLER}
    assert shared.keys() >= {
        "spotconn-subscriber",
        "spotconn-saver",
        "spotconn-read",
        "spotconn-release",
        "spotconn-compare",
        "spotconn-watch",
        "SharedReads._expire",
        "IdleSessions._expire",
        "on_event",
    }
    assert {name for name, seen in shared.items() if seen != {None}} == set()
