"""A crash reporter that wraps each task and writes out the locals of the frames of what it raises, values dumped."""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import asdict, is_dataclass
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import BaseModel

from spotconn import ConnectionStore, SpotconnError, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect


class Reporter:
    """A task factory that reports what ends each task, as Sentry's integration of asyncio does."""

    def __init__(self) -> None:
        self.tasks = 0
        self.reported: list[str] = []

    def __call__(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        return asyncio.Task(self._watched(work), loop=loop, **options)

    async def _watched(self, work: Coroutine[Any, Any, Any]) -> Any:
        self.tasks += 1
        try:
            return await work
        except BaseException as error:
            trace = error.__traceback__
            while trace is not None:
                self.reported += [_dumped(value) for value in trace.tb_frame.f_locals.values()]
                trace = trace.tb_next
            raise


def _dumped(value: object) -> str:
    if isinstance(value, BaseModel):
        return value.model_dump_json() + repr(value)
    return repr(asdict(value)) if is_dataclass(value) and not isinstance(value, type) else repr(value)


async def test_no_task_of_the_library_gives_a_token_to_a_reporter(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
) -> None:
    """Reads, refreshes that succeed, that Spotify refuses and that are cancelled at the end, and the listener."""
    stored = [await connect(store, spotify, user, account=f"a{place}", ttl=5) for place, user in enumerate(users)]
    spotify.revoke("a1")
    reporter = Reporter()
    asyncio.get_running_loop().set_task_factory(reporter)
    try:
        async with TokenManager(store, accounts) as tokens:
            for user in users:
                call = asyncio.ensure_future(tokens.get_valid_token(user))
                if user == users[2]:
                    await asyncio.sleep(0)
                    call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            with contextlib.suppress(SpotconnError):
                await tokens.get_valid_token(users[1], min_ttl=60)
            await admin.execute("update public.spotify_connections set display_name = 'x'")
            assert [one async for one in tokens.get_valid_tokens(users)]
    finally:
        asyncio.get_running_loop().set_task_factory(None)
    issued = spotify._tokens
    secrets = {*issued.access, *issued.refresh, *issued.revoked, *(one.refresh_token for one in stored)}
    assert reporter.tasks > 5
    assert not [text for text in reporter.reported if any(secret in text for secret in secrets)]
