"""The library on uvloop, the extra `uvloop`: what hangs on the loop's own behaviour."""

import asyncio

import asyncpg
import pytest

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.database import Database
from support.fleet import connect_crowd

uvloop = pytest.importorskip("uvloop", reason="the extra uvloop is not installed")


def test_a_refresh_outlives_its_caller_on_uvloop(prepared: Database, spotify: FakeSpotify) -> None:
    """A caller that is cancelled while Spotify thinks loses nothing: the next gets that refresh, from the cache too."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_cancel_the_first_caller(prepared, spotify))
    assert spotify.token_calls == 1


async def _cancel_the_first_caller(database: Database, spotify: FakeSpotify) -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    admin = await asyncpg.connect(database.admin_dsn)
    await admin.execute("delete from auth.users")
    [user] = await connect_crowd(admin, spotify, 1)
    await admin.close()
    async with (
        spotify.serve() as url,
        ConnectionStore.open(database.dsn, max_size=2) as store,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
        TokenManager(store, accounts) as tokens,
    ):
        with spotify.hold() as held:
            caller = asyncio.create_task(tokens.get_valid_token(user))
            await held.reached()
            caller.cancel()
            await asyncio.wait([caller])
            assert caller.cancelled()
            others = asyncio.gather(*[tokens.get_valid_token(user) for _ in range(100)])
            held.release()
            answers = set(await others)
        [token] = answers
        assert spotify.accepts(token)
        assert (await store.get(user)).access_token == token
        assert await tokens.get_valid_token(user) == token
